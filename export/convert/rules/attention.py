"""Causal attention within a window: F.scaled_dot_product_attention and nn.MultiheadAttention.

The mask says the window: a causal one (or is_causal) needs convert's ``window``, a banded one
brings its own. Keys and values are kept in a ring as in
:class:`streamssm.export.layers.SlidingWindowAttention`, without positions: what the user rotated
or added before is in q, k and v.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from streamssm.export.convert.call import Call
from streamssm.export.convert.calls import bind, rebuilt
from streamssm.export.convert.flow import Flow, Layout, Poison, from_rows, to_rows
from streamssm.export.convert.itemwise import UnstreamableError
from streamssm.export.convert.plan import Mask, Step
from streamssm.export.convert.planner import Outcome, Planner
from streamssm.export.convert.session import Session
from streamssm.export.ops import sliding_window_attention

SDPA = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
MHA = tuple(inspect.signature(F.multi_head_attention_forward).parameters)
ROLES = ("query", "key", "value")

FULL = (
    "attends to all items, later ones too",
    "pass a causal mask (is_causal=True) and train so; then give convert() a window=",
)
ENDLESS = (
    "attends to the whole past, which grows without end",
    "give convert() a window=, the number of last items to attend to; the file says that it was imposed",
)
MASKED = (
    "has a mask that is neither causal nor a causal window",
    "use a mask that depends on the distance of query and key only: the last n items",
)
SHAPE = (
    "attends in a way that is not known here",
    "give queries, keys and values as [batch, heads, time, dim], of one sequence at one rate",
)
EXTRAS = (
    "uses bias_k, bias_v, add_zero_attn or a key_padding_mask",
    "leave them out: a stream has no padding",
)
WEIGHTS = ("gives the attention weights, T x T of them", "call the layer with need_weights=False")

#: what stands for minus infinity among scores; softmax of it is 0 in float32 and float64
UNSEEN = 1e4


@dataclass
class AttentionStep(Step):
    """Attention to the last ``window`` items."""

    window: int = 0
    layouts: dict[str, Layout] = field(default_factory=dict)
    states: tuple[str, str, str] = ("", "", "")
    mask: Mask | None = None

    def attend(self, session: Session, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """q [B, T, Hq, dh], k, v [B, T, Hkv, dh] -> [B, T, Hq, dh]."""
        size = v.shape[-1]
        if self.mask is not None:
            q, k, v = self._hide_start(session, q, k, v, scale)
        key, value, position = (session.state[name] for name in self.states)
        no_angles = k.new_zeros(0)
        y, *following = sliding_window_attention(q, k, v, no_angles, key, value, position, scale)
        session.following.update(zip(self.states, following, strict=True))
        y = y[..., :size]
        if self.mask is not None:  # what attends to hidden items only
            y = y.masked_fill(session.before_rows(self.mask, y.shape[1])[..., None, None], 0.0)
        return y

    def _hide_start(
        self, session: Session, q: Tensor, k: Tensor, v: Tensor, scale: float
    ) -> tuple[Tensor, ...]:
        """One more dim of the heads, which makes the score of items before the start vanish."""
        before = session.before_rows(self.mask, k.shape[1])[..., None, None]
        q, k, v = (x.masked_fill(before, 0.0) for x in (q, k, v))
        hidden = (before.to(k.dtype) * (-UNSEEN / scale)).expand(*k.shape[:-1], 1)
        ones, zeros = torch.ones_like(q[..., :1]), torch.zeros_like(v[..., :1])
        return torch.cat([q, ones], -1), torch.cat([k, hidden], -1), torch.cat([v, zeros], -1)


@dataclass
class ProductStep(AttentionStep):
    """F.scaled_dot_product_attention."""

    def run(self, session: Session, func: Callable, args: tuple, kwargs: dict) -> Any:
        """[B, H, T, dh] -> the same."""
        args, kwargs = self.fitted(session, args, kwargs)
        given = bind(SDPA, args, kwargs)
        q, k, v = (to_rows(given[role], self.layouts[role]) for role in ROLES)
        scale = given.get("scale") or 1 / math.sqrt(q.shape[-1])
        y = self.attend(session, q, k, v, float(scale))
        return from_rows(y, self.layouts["query"])

    def reference(self, func: Callable, args: tuple, kwargs: dict) -> Any:
        """The same with the window as a mask."""
        if not self.imposed:
            return func(*args, **kwargs)
        return func(**banded(bind(SDPA, args, kwargs), self.window))


def banded(given: dict[str, Any], window: int) -> dict[str, Any]:
    """Arguments of scaled_dot_product_attention with a causal window as their mask."""
    T, S = given["query"].shape[-2], given["key"].shape[-2]
    return given | {"attn_mask": band(T, S, window, given["query"].device), "is_causal": False}


def band(T: int, S: int, window: int, device: torch.device | None = None) -> Tensor:
    """[T, S] bool: key j is among the last ``window`` items of query i."""
    distance = torch.arange(T, device=device)[:, None] - torch.arange(S, device=device)
    return (distance >= 0) & (distance < window)


def product(planner: Planner, call: Call) -> Outcome | None:
    """F.scaled_dot_product_attention over time.

    Raises:
        UnstreamableError: no causal window.
    """
    given = bind(SDPA, call.args, call.kwargs)
    found = {role: call.leaf_of(given[role]) for role in ROLES}
    if None in found.values():
        raise UnstreamableError(SHAPE)
    flows = [call.flows[index] for index in found.values() if index is not None]
    if any(flow.time == given["query"].ndim - 2 for flow in flows):
        _require_plain(flows, given["query"].ndim - 2)
    else:  # attends over another axis
        return None
    long = bind(SDPA, *_in_long_run(call))
    window, imposed = window_of(planner, call, given, long)
    step = ProductStep(call.name, call.path, call.line, window=window, imposed=imposed)
    late = _fitted(planner, call, step, list(found.values()), flows)
    step.layouts = dict(zip(ROLES, (flow.layout for flow in flows), strict=True))
    k = to_rows(given["key"], flows[1].layout)
    _rings(planner, call, step, flows[0], late, k.shape[2], k.shape[3], k.dtype)
    return step, [Flow(flows[0].layout, flows[0].rate, flows[0].items, late, 0)]


def _in_long_run(call: Call) -> tuple[tuple, dict]:
    leaves = [leaf if isinstance(leaf, Tensor | int | float | bool) else None for leaf in call.long.leaves]
    return rebuilt(leaves, call.spec)


def _require_plain(flows: list[Flow], time: int) -> None:
    for flow in flows:
        alone = flow.plain and flow.time == time and flow.layout[flow.batch] == ("B",) and flow.batch == 0
        if not alone or len(flow.layout) != 4 or (flow.rate, flow.items) != (flows[0].rate, flows[0].items):
            raise UnstreamableError(SHAPE)


def _fitted(
    planner: Planner, call: Call, step: AttentionStep, indices: list[int | None], flows: list[Flow]
) -> int:
    """Fit all to one delay, each item once; its warm-up is hidden."""
    late, _ = planner.aligned(flows)
    goals = {index: (late, 0) for index in indices if index is not None}
    step.fits = planner.fit_all(call, goals)
    if late:
        step.mask = Mask(flows[0].rate, late, 0, 0.0)
        planner.clock = True
    return late


def _rings(
    planner: Planner,
    call: Call,
    step: AttentionStep,
    flow: Flow,
    late: int,
    heads: int,
    size: int,
    dtype: Any,
) -> None:
    ring = (heads, step.window, size + bool(late))
    step.states = (
        planner.new_state(call.path, "key", ring, dtype),
        planner.new_state(call.path, "value", ring, dtype),
        planner.new_state(call.path, "position", (), torch.int64),
    )


def window_of(planner: Planner, call: Call, given: dict[str, Any], long: dict[str, Any]) -> tuple[int, bool]:
    """The window in items, and whether it is convert's own.

    Raises:
        UnstreamableError: the mask is not causal, or causal without an end.
    """
    mask, own = given.get("attn_mask"), None
    if mask is None:
        if not given.get("is_causal"):
            raise UnstreamableError(FULL)
    else:
        own = _width(mask), _width(long["attn_mask"])
        if own == (mask.shape[-1], long["attn_mask"].shape[-1]):
            own = None  # causal, as far back as there are items
        elif own[0] != own[1]:
            raise UnstreamableError(MASKED)
    width = None if own is None else own[0]
    if planner.window is None:
        if width is None:
            raise UnstreamableError(ENDLESS)
        return width, False
    imposed = width is None or planner.window < width
    return (planner.window, True) if imposed else (width or 0, False)


def _width(mask: Tensor) -> int:
    """How many items back a mask [..., T, T] lets each query see.

    Raises:
        UnstreamableError: it is no causal band.
    """
    allowed = mask if mask.dtype == torch.bool else mask == 0
    if mask.dtype != torch.bool and not bool((allowed | (mask < -1e4)).all()):
        raise UnstreamableError(MASKED)
    allowed = allowed.reshape(-1, *mask.shape[-2:])
    T, S = allowed.shape[-2:]
    if T != S or not bool((allowed == allowed[:1]).all()):
        raise UnstreamableError(MASKED)
    if bool(allowed[0].all()):
        raise UnstreamableError(FULL)
    width = int(allowed[0].sum(1).max())
    if not torch.equal(allowed[0], band(T, S, width, mask.device)):
        raise UnstreamableError(FULL if bool(allowed[0].triu(1).any()) else MASKED)
    return width


# --- nn.MultiheadAttention ----------------------------------------------------------------


@dataclass
class MultiheadStep(AttentionStep):
    """F.multi_head_attention_forward: q, k, v [T, B, d]. Of the weights, if they are asked for, no
    output can make use: a zero stands for them."""

    weights: bool = False

    def run(self, session: Session, func: Callable, args: tuple, kwargs: dict) -> Any:
        """Project, attend, project."""
        args, kwargs = self.fitted(session, args, kwargs)
        given = bind(MHA, args, kwargs)
        heads = given["num_heads"]
        rows = [x.transpose(0, 1) for x in _projected(given)]
        q, k, v = (x.unflatten(-1, (heads, -1)) for x in rows)
        y = self.attend(session, q, k, v, 1 / math.sqrt(q.shape[-1]))
        y = F.linear(y.flatten(-2).transpose(0, 1), given["out_proj_weight"], given["out_proj_bias"])
        return y, y.new_zeros(1) if self.weights else None

    def reference(self, func: Callable, args: tuple, kwargs: dict) -> Any:
        """The same with the window as a mask; True hides here."""
        if not self.imposed:
            return func(*args, **kwargs)
        given = bind(MHA, args, kwargs)
        T, S = given["query"].shape[0], given["key"].shape[0]
        mask = ~band(T, S, self.window, given["query"].device)
        return func(**given | {"attn_mask": mask, "is_causal": False})


def _projected(given: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    bias = given["in_proj_bias"]
    biases = (None,) * 3 if bias is None else bias.chunk(3)
    if given.get("use_separate_proj_weight"):
        weights = tuple(given[f"{letter}_proj_weight"] for letter in "qkv")
    else:
        weights = given["in_proj_weight"].chunk(3)
    q, k, v = (F.linear(given[role], w, b) for role, w, b in zip(ROLES, weights, biases, strict=True))
    return q, k, v


def multihead(planner: Planner, call: Call) -> Outcome | None:
    """F.multi_head_attention_forward over time.

    Raises:
        UnstreamableError: as :func:`product`, or extras of the layer.
    """
    given = bind(MHA, call.args, call.kwargs)
    found = [call.leaf_of(given[role]) for role in ROLES]
    if None in found:
        raise UnstreamableError(SHAPE)
    flows = [call.flows[index] for index in found if index is not None]
    if all(flow.time == 1 for flow in flows) or not all(flow.plain for flow in flows):
        return None  # time is among the rows: attention over another axis
    if any((f.time, f.batch, len(f.layout)) != (0, 1, 3) or f.layout[1] != ("B",) for f in flows):
        raise UnstreamableError(SHAPE)
    extras = ("bias_k", "bias_v", "key_padding_mask", "static_k", "static_v")
    if any(given.get(name) is not None for name in extras) or given.get("add_zero_attn"):
        raise UnstreamableError(EXTRAS)
    mask, long = given.get("attn_mask"), bind(MHA, *_in_long_run(call)).get("attn_mask")
    if mask is not None and mask.dtype == torch.bool:  # here True hides
        mask, long = ~mask, ~long
    causal = {"attn_mask": mask, "is_causal": given.get("is_causal")}
    window, imposed = window_of(planner, call, causal, {"attn_mask": long})
    weighted = len(call.outs) > 1
    step = MultiheadStep(call.name, call.path, call.line, window=window, imposed=imposed, weights=weighted)
    late = _fitted(planner, call, step, found, flows)
    heads = given["num_heads"]
    size = given["embed_dim_to_check"] // heads
    _rings(planner, call, step, flows[0], late, heads, size, given["query"].dtype)
    y = Flow(flows[0].layout, flows[0].rate, flows[0].items, late, 0)
    weights = Poison(frozenset({planner.refusal(call, WEIGHTS)}))
    return step, [y, *[weights] * (len(call.outs) - 1)]


RULES = {"scaled_dot_product_attention": product, "multi_head_attention_forward": multihead}
