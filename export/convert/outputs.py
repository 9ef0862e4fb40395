"""The tensors in a model's result: by name, on one look-ahead."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten_with_path

from streamssm.errors import ExportError
from streamssm.export.convert.calls import leaves_of
from streamssm.export.convert.flow import Flow, Poison, row_shape, rows_possible
from streamssm.export.convert.itemwise import UnstreamableError
from streamssm.export.convert.plan import OutputPlan, Plan
from streamssm.export.convert.planner import Planner
from streamssm.export.convert.refusal import ConversionError, Refusal


def finished(planner: Planner, result: Any, wanted: Sequence[str] | None) -> Plan:
    """The plan, with all outputs on one look-ahead.

    Raises:
        ConversionError: an output cannot stream.
        ExportError: there is no output of a wanted name.
    """
    leaves, kept = leaves_of(result)[0], named_leaves(result, wanted)
    flows = _flows(planner, leaves, kept)
    for flow in flows.values():
        planner.need_hop(1, flow.rate)
    lookahead = _lookahead(list(flows.values()))
    outputs = tuple(
        _output(planner, name, kept[name], leaves, flow, lookahead) for name, flow in flows.items()
    )
    return Plan(
        planner.steps,
        planner.states,
        outputs,
        planner.hop,
        lookahead,
        tuple(planner.delays),
        planner.vocabulary,
        planner.window if any(step.imposed for step in planner.steps) else None,
        planner.clock,
    )


def _flows(planner: Planner, leaves: list[Any], kept: dict[str, int]) -> dict[str, Flow]:
    """The flow of each output.

    Raises:
        ConversionError: one of them has none.
    """
    flows: dict[str, Flow] = {}
    refusals: set[Refusal] = set()
    for name, leaf in kept.items():
        meta = planner.meta(leaves[leaf])
        if isinstance(meta, Poison):
            refusals |= meta.reasons
        elif meta is None:
            refusals.add(_not_streamed(name))
        elif not rows_possible(meta.layout):
            refusals.add(_no_axis(name))
        elif meta.items > planner.sizes.items * meta.rate:
            refusals.add(_too_long(name, meta, planner.sizes.items))
        else:
            flows[name] = meta
    if refusals:
        raise ConversionError(refusals)
    return flows


def named_leaves(result: Any, wanted: Sequence[str] | None) -> dict[str, int]:
    """Name -> place among the leaves. The one tensor of a result is "output".

    Raises:
        ExportError: there is no tensor, or none of a wanted name.
    """
    found, _ = tree_flatten_with_path(result)
    names = {
        ".".join(_word(key) for key in path) or "output": index
        for index, (path, leaf) in enumerate(found)
        if isinstance(leaf, Tensor)
    }
    if not names:
        raise ExportError(f"the model returns a {type(result).__name__} without a tensor")
    if wanted is None:
        return names
    if missing := [name for name in wanted if name not in names]:
        raise ExportError(f"the model returns {', '.join(names)}; there is no {missing[0]!r}")
    return {name: names[name] for name in wanted}


def _word(key: Any) -> str:
    for attribute in ("key", "idx", "name"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def _output(
    planner: Planner, name: str, leaf: int, leaves: list[Any], flow: Flow, lookahead: int
) -> OutputPlan:
    try:
        fit = planner.fit_tensor(leaves[leaf], flow, int(lookahead * flow.rate), 0, f"outputs.{name}")
    except UnstreamableError as broken:
        raise ConversionError([Refusal(f"output {name}", "", "result", *broken.said)]) from None
    y = leaves[leaf]
    dtype = None if y.dtype == torch.get_default_dtype() else y.dtype
    return OutputPlan(name, leaf, fit, flow.layout, flow.rate, row_shape(y, flow.layout), dtype)


def _lookahead(flows: list[Flow]) -> int:
    """The least number of input items after which every output is there, in whole output items."""
    items = math.ceil(max((max(flow.late, 0) / flow.rate for flow in flows), default=0))
    while any((items * flow.rate).denominator > 1 for flow in flows):
        items += 1
    return items


def _not_streamed(name: str) -> Refusal:
    return Refusal(
        f"output {name}",
        "",
        "result",
        "does not depend on the input, or through code that torch does not see (a compiled module, numpy)",
        "name the outputs to keep: outputs=[...], or register a twin for the module that makes it",
    )


def _no_axis(name: str) -> Refusal:
    return Refusal(
        f"output {name}", "", "result", "has batch and time on one axis", "return [batch, time, ...]"
    )


def _too_long(name: str, flow: Flow, items: int) -> Refusal:
    return Refusal(
        f"output {name}",
        "",
        "result",
        f"has {flow.items} items for {items} of the input, more than {flow.rate} for each",
        f"cut what padding added at the end, as in y[..., :-{flow.items - int(items * flow.rate)}]",
    )
