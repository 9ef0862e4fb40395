"""The proof of a conversion: the stream against the model itself, whole and split.

If they differ, the calls of both are compared one by one, and the first that gives other values
is named.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from streamssm.errors import LayerError
from streamssm.export.contract import random_split
from streamssm.export.convert.flow import Flow
from streamssm.export.convert.layer import ConvertedLayer
from streamssm.export.convert.refusal import ConversionError, Refusal
from streamssm.export.layers.base import State

#: of the largest magnitude; a model run in float64 may still compute parts of itself in float32
BOUNDS = {torch.float64: 2e-5, torch.float32: 2e-4}
TWO_WAYS = (
    "keeps something between calls, or draws random numbers: two runs on one input differ",
    "keep no buffers that a forward changes, and no randomness in evaluation mode",
)

Results = dict[str, Tensor]


def prove(layer: ConvertedLayer, vocabulary: int | None) -> None:
    """Compare at several lengths: in one call, in random pieces, hop by hop.

    Raises:
        ConversionError: they differ; the message says where.
    """
    generator = random.Random(0)
    proved = 0
    for items in _lengths(layer):
        x = _input(layer, items, vocabulary)
        try:
            wanted = _named(layer, layer.reference(x))
        except Exception:  # too short for the model itself
            continue
        _require_equal(layer, "run again", x, wanted, _named(layer, layer.reference(x)), TWO_WAYS)
        for split in _splits(layer, items, generator):
            _compare(layer, x, wanted, split)
        proved += 1
    if not proved:
        raise ConversionError(
            [_failure("no length", "the model's own forward ran at none of the lengths tried")]
        )


def _lengths(layer: ConvertedLayer) -> Iterator[int]:
    hop, window = layer.hop, layer.window_imposed or 0
    reach = max((spec.shape[0] for spec in layer.state_spec().values() if spec.shape), default=0)
    hops = -(-max(layer.lookahead, 2 * window, min(reach, 4096)) // hop)
    yield from (hop, 2 * hop, (5 + hops) * hop, (24 + 2 * hops) * hop)


def _splits(layer: ConvertedLayer, items: int, generator: random.Random) -> Iterator[list[int]]:
    hop = layer.hop
    yield [items]
    if items // hop <= 64:
        yield [hop] * (items // hop)
    yield random_split(generator, items, hop)


def _input(layer: ConvertedLayer, items: int, vocabulary: int | None) -> Tensor:
    generator = torch.Generator().manual_seed(items)
    shape = (2, items, *layer.item_shape)
    if layer.item_dtype == torch.int64:
        return torch.randint(layer.vocabulary or vocabulary or 2, shape, generator=generator)
    return torch.randn(shape, generator=generator)


def _named(layer: ConvertedLayer, y: Tensor | Mapping[str, Tensor]) -> Results:
    return dict(y) if isinstance(y, Mapping) else {layer.output_names[0]: y}


def start(layer: ConvertedLayer, batch: int) -> State:
    """A fresh state in the dtype of the present run."""
    dtype = torch.get_default_dtype()
    return {n: v.to(dtype) if v.is_floating_point() else v for n, v in layer.init_state(batch).items()}


def _compare(layer: ConvertedLayer, x: Tensor, wanted: Results, split: list[int]) -> None:
    state, parts = start(layer, x.shape[0]), []
    try:
        for chunk in x.split(split, dim=1):
            y, state = layer(chunk, state)
            parts.append(_named(layer, y))
    except Exception as error:
        raise ConversionError([_crash(layer, error)]) from error
    found = {name: torch.cat([part[name] for part in parts], dim=1) for name in wanted}
    how = "in one call" if len(split) == 1 else f"in pieces of {split[:6]}"
    why = (f"the stream differs from the model ({how})", "please report this model; nothing was converted")
    _require_equal(layer, how, x, wanted, found, why)


def _require_equal(
    layer: ConvertedLayer, how: str, x: Tensor, wanted: Results, found: Results, said: tuple[str, str]
) -> None:
    for plan in layer.plan.outputs:
        late = int(layer.lookahead * plan.rate)
        a, b = found[plan.name][:, late:], wanted[plan.name][:, late:]
        length = min(a.shape[1], b.shape[1])  # a model that does not pad gives fewer items
        error = _error(a[:, :length], b[:, :length])
        if a.dtype != b.dtype or not error <= BOUNDS.get(b.dtype, 2e-4):
            first = _first_difference(layer, x) if how != "run again" else None
            place = first or (f"output {plan.name}", "", "result")
            raise ConversionError(
                [
                    Refusal(
                        place[0], place[1], place[2], f"{said[0]}: off by {error:.2g} of the largest", said[1]
                    )
                ]
            )


def _error(a: Tensor, b: Tensor) -> float:
    if not a.numel():
        return 0.0
    if not a.is_floating_point():
        return float((a != b).any())
    same = (a == b) | (a.isnan() & b.isnan())
    finite = b.abs()[b.isfinite()]
    scale = float(finite.max()) if finite.numel() else 0.0
    return float(torch.where(same, torch.zeros_like(b), a - b).abs().max()) / max(scale, 1e-12)


def _first_difference(layer: ConvertedLayer, x: Tensor) -> tuple[str, str, str] | None:
    """The first call whose part of the sequence is another one in the stream: path, line, function."""
    try:
        whole, stream = layer.trace_whole(x), layer.trace(x, start(layer, x.shape[0]))
    except Exception:  # a message must not fail
        return None
    for step, wanted, found in zip(layer.plan.steps, whole, stream, strict=False):
        for flow, a, b in zip(step.flows, wanted, found, strict=False):
            if flow is not None and flow.plain and not _same_items(flow, a, b):
                return step.path, "", f"{step.name}, {step.line}"
    return None


def _same_items(flow: Flow, whole: Tensor, stream: Tensor) -> bool:
    """The items that both hold; see :mod:`.flow` for their index."""
    late = flow.late
    a = whole.narrow(
        flow.time, min(max(-late, 0), whole.shape[flow.time]), max(whole.shape[flow.time] + min(late, 0), 0)
    )
    b = stream.narrow(
        flow.time, min(max(late, 0), stream.shape[flow.time]), max(stream.shape[flow.time] - max(late, 0), 0)
    )
    items = min(a.shape[flow.time], b.shape[flow.time])
    a, b = a.narrow(flow.time, 0, items), b.narrow(flow.time, 0, items)
    return a.shape == b.shape and _error(b.to(a.dtype), a) <= BOUNDS.get(a.dtype, 2e-4)


def _failure(place: str, why: str) -> Refusal:
    return Refusal(place, "", "proof", why, "give an example input, or hop=")


def _crash(layer: ConvertedLayer, error: Exception) -> Refusal:
    said = f"{type(error).__name__}: {error}".splitlines()[0]
    if isinstance(error, LayerError):
        remedy = "branch on constants only; or register a twin for the module"
    else:
        remedy = "compute sizes from the tensors at hand, not from the input's length; or register a twin"
    return Refusal(
        "the model itself", type(layer.model).__name__, "forward", f"fails on a chunk: {said}", remedy
    )
