"""A lowered graph against the model that it was made from, both in ONNX Runtime on the processor.

What a compiler makes of the graph is another matter, which is checked on the device that runs it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from streamssm import tolerance
from streamssm.draw import default_items, draw_input
from streamssm.errors import BackendError, GateError
from streamssm.manifest import Manifest

if TYPE_CHECKING:
    from streamssm.backends import Lane
    from streamssm.onnx_file import ModelFile

Array = npt.NDArray[Any]

#: which row of the tolerance table a precision is judged by
DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
_CALLS, _ITEMS = 3, 32
#: hops of a call of the model alone, in which it grows old; and the most of them altogether
_AGING, _MOST_AGING = 64, 2048


def check_graph(file: ModelFile, data: bytes, precision: str, block: int) -> dict[str, float]:
    """Push random input through both, ``block`` items a call, with the state carried on: from a fresh state,
    and from that of an older stream, in which rings are full; of two sequences, if the graph takes more than
    one. Return the relative error of each output.

    The processor has no products of bfloat16: such a graph is checked by its float32 twin.

    Raises:
        GateError: an output differs by more than the tolerance table allows.
    """
    batch = 1 if _fixed_batch(data) else None
    if precision == "bf16":
        from streamssm.tensorrt.dialect import to_dialect

        data, precision = to_dialect(file, "10.3", False, block=block, batch=batch), "fp32"
    rng, session = np.random.default_rng(0), _session(data)
    dtype, errors = _judged_by(file.manifest, precision), dict[str, float]()
    for x, start, wanted in _model_runs(file, block, batch or 2, rng):
        found = run_graph(session, file.manifest, x, block, start)
        for name, reference in wanted.items():
            largest, relative = tolerance.error(found[name], reference)
            errors[name] = max(relative, errors.get(name, 0.0))
            if not tolerance.within(found[name], reference, dtype, file.manifest.rounding):
                bounds = tolerance.tolerance(dtype)
                raise GateError(
                    f"the graph for TensorRT differs from {file.path} in output {name!r}: {largest:.2g} "
                    f"absolute, {relative:.2g} relative; with {precision} products {bounds.rtol:g} is "
                    "allowed; use a higher --precision, and report this if it is fp32"
                )
    return errors


def _judged_by(manifest: Manifest, precision: str) -> str:
    """The looser of the two: the model's own rounding to 8 or 4 bits, or that of the products."""
    kinds = [DTYPES[precision], manifest.weights.dtype]
    return max(kinds, key=lambda dtype: tolerance.tolerance(dtype).rtol)


def _model_runs(
    file: ModelFile, block: int, batch: int, rng: np.random.Generator
) -> Iterator[tuple[Array, dict[str, Array], dict[str, Array]]]:
    """Input [batch, items, ...], states at its start and what the model itself makes of it, by name: of a
    fresh stream, then of one that is older than any window, as far as that takes no minutes."""
    from streamssm.backends import open_backend

    manifest = file.manifest
    backend = open_backend("cpu", file)  # kept: its kernels read weights where it holds them
    lane = backend.lane(block, batch)
    hop, calls = manifest.input.hop, max(_CALLS, -(-_ITEMS * manifest.input.hop // block))
    old = backend.lane(_AGING * hop, batch)
    for aging in (0, min(-(-default_items(manifest) // (_AGING * hop)), _MOST_AGING // _AGING)):
        for _ in range(aging):
            old.x[...] = _rows(manifest, _AGING * hop, batch, rng)
            old.step()
        for mine, value in zip(lane.state, old.state, strict=True):
            mine[...] = value
        start = {state.name: value.copy() for state, value in zip(manifest.states, old.state, strict=True)}
        x = _rows(manifest, calls * block, batch, rng)
        yield x, start, _model_outputs(lane, manifest, x, block)


def _rows(manifest: Manifest, items: int, batch: int, rng: np.random.Generator) -> Array:
    """[batch, items, ...], each row another."""
    return np.stack([draw_input(manifest, items, rng) for _ in range(batch)])


def _model_outputs(lane: Lane, manifest: Manifest, x: Array, block: int) -> dict[str, Array]:
    parts: list[tuple[Array, ...]] = []
    for start in range(0, x.shape[1], block):
        lane.x[...] = x[:, start : start + block]
        lane.step()
        parts.append(tuple(y.copy() for y in lane.y))
    names = [output.name for output in manifest.outputs]
    joined = (np.concatenate(values, axis=1) for values in zip(*parts, strict=True))
    return dict(zip(names, joined, strict=True))


def run_graph(
    session: Any, manifest: Manifest, x: Array, block: int, start: Mapping[str, Array]
) -> dict[str, Array]:
    """Outputs [batch, items, ...] by name of a lowered graph for x [batch, items, ...] and states to begin
    with.

    Raises:
        BackendError: ONNX Runtime cannot run it.
    """
    bound = {port.name for port in session.get_inputs()}
    states = {name: value for name, value in start.items() if name in bound}  # the rest have no elements
    followers = {state.next: state.name for state in manifest.states}
    names = [output.name for output in session.get_outputs()]
    parts: dict[str, list[Array]] = {output.name: [] for output in manifest.outputs}
    for first in range(0, x.shape[1], block):
        try:
            results = session.run(names, {manifest.input.name: x[:, first : first + block], **states})
        except Exception as error:  # ONNX Runtime's own have no common base
            raise BackendError(f"ONNX Runtime cannot run the graph for TensorRT: {error}") from error
        for name, value in zip(names, results, strict=True):
            if name in parts:
                parts[name].append(value)
            else:
                states[followers[name]] = value
    return {name: np.concatenate(values, axis=1) for name, values in parts.items()}


def _session(data: bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise BackendError(f"ONNX Runtime cannot open the graph for TensorRT: {error}") from error


def _fixed_batch(data: bytes) -> bool:
    import onnx

    model = onnx.load_from_string(data)
    return bool(model.graph.input[0].type.tensor_type.shape.dim[0].HasField("dim_value"))
