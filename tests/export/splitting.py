"""One random life of a stream: pushes of any length with forks, snapshots and resets between."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

import streamssm
from streamssm.manifest import Input


def draw_items(spec: Input, items: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    if spec.kind == "tokens":
        return generator.integers(spec.vocabulary or 2, size=(items, *spec.shape))
    return generator.standard_normal((items, *spec.shape)).astype(np.float32)


def assert_one_random_split_is_byte_equal(model: streamssm.Model, data: st.DataObject) -> None:
    """Draw a block size, a length, cuts and what happens at each; compare with the whole."""
    spec = model.manifest.input
    block = data.draw(st.sampled_from([1, 2, 5]), label="block") * spec.hop
    items = data.draw(st.integers(0, 9 * block), label="items")
    cuts = sorted(data.draw(st.lists(st.integers(0, items), max_size=6), label="cuts"))
    x = draw_items(spec, items, seed=items)
    whole = outputs(model.scan(x, block=block))
    stream, parts = model.stream(block=block), []
    for start, stop in zip([0, *cuts], [*cuts, items], strict=True):
        parts.append(outputs(stream.push(x[start:stop])))
        match data.draw(st.sampled_from(["go on", "fork", "resume", "a twin resets"])):
            case "fork":
                stream = stream.fork()
            case "resume":
                stream = model.resume(stream.snapshot())
            case "a twin resets":
                twin = stream.fork()
                twin.reset()
                assert twin.position == twin.pending == 0
    parts.append(outputs(stream.flush()))
    for name, value in whole.items():
        assert np.concatenate([part[name] for part in parts]).tobytes() == value.tobytes()


def outputs(result: np.ndarray | dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return result if isinstance(result, dict) else {"": result}
