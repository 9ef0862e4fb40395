"""``convert``: any torch module -> a streaming layer, proved equal to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from streamssm.errors import ExportError
from streamssm.export.convert.layer import ConvertedLayer, Entry, evaluating
from streamssm.export.convert.plan import Plan
from streamssm.export.convert.probe import Probe
from streamssm.export.convert.proof import prove
from streamssm.export.convert.refusal import ConversionError, Refusal
from streamssm.export.convert.registry import find_treatments
from streamssm.export.layers.base import StreamingLayer


def convert(
    model: nn.Module,
    example: Tensor | None = None,
    *,
    item_shape: tuple[int, ...] | None = None,
    vocabulary: int | None = None,
    time: int | None = None,
    batch: int = 0,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    outputs: Sequence[str] | None = None,
    window: int | None = None,
    lookahead: int = 0,
    hop: int = 1,
) -> StreamingLayer:
    """``model`` as a streaming layer that shares its weights, ready for :func:`streamssm.export.export`.

    The model is run a few times on random input, in evaluation mode, and every call it makes is
    judged: what works item by item stays as it is, what mixes time in a causal way gets a state,
    and the rest is refused with its place and a remedy. Then the stream is compared with the
    model itself, whole and split, and nothing is returned unless they are equal.

    Args:
        model: takes one sequence with a batch; its other arguments are constants.
        example: an input as the model takes it, with a batch; or give ``item_shape``.
        item_shape: shape of one item, for a model that takes [B, T, *item_shape], or with ``time=-1``
            [B, *item_shape, T].
        vocabulary: the model takes tokens below it, int64.
        time: axis of time in the input; found out if it is not given and only one is possible.
        batch: axis of the batch in the input.
        args: constants after the input in each call of the model.
        kwargs: constants by name in each call of the model.
        outputs: names of the results to keep, or of all of them; keys of a dictionary, "0", "1", ...
            for a tuple, joined by dots where they are nested. All tensors by default.
        window: items that causal attention without a window of its own may see.
        lookahead: the most input items that outputs may lag behind.
        hop: a number of items that the input always comes in multiples of, if the model needs one.

    Returns:
        The layer; ``layer.model`` is the given module, ``layer.reference(x)`` its own result.

    Raises:
        ConversionError: the model cannot stream: each reason with module, line and remedy.
        ExportError: the model cannot be run on the input described.
    """
    if isinstance(model, StreamingLayer):
        return model
    entry = _entry(example, item_shape, vocabulary, time, batch, tuple(args), dict(kwargs or {}))
    with evaluating(_module(model)), torch.no_grad():
        probe = Probe(model, entry, example, vocabulary, window, hop, outputs)
        with probe.numbers():
            plan, entry, atomic = probe.plan()
            if plan.lookahead > lookahead:
                raise _too_late(plan, lookahead)
            treatments = find_treatments(probe.model, atomic, window)
            proved = ConvertedLayer(probe.model, entry, plan, treatments)
            prove(proved, probe.range)
            note = probe.note(entry)
        treatments = find_treatments(model, atomic, window)
        layer = ConvertedLayer(model, entry, plan, treatments, note)
    return layer.train(model.training)


def _module(model: Any) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise ExportError(f"the model is a {type(model).__name__}, no torch.nn.Module; put it in one")
    return model


def _entry(
    example: Tensor | None,
    item_shape: tuple[int, ...] | None,
    vocabulary: int | None,
    time: int | None,
    batch: int,
    args: tuple,
    kwargs: dict[str, Any],
) -> Entry:
    """What the arguments say of the input; time is -1 as long as it is not known."""
    dtype = torch.int64 if vocabulary is not None else torch.float32
    if example is None:
        if item_shape is None and vocabulary is None:
            raise ExportError("give convert an example input of the model, or item_shape=")
        shape = tuple(item_shape or ())
        ndim = len(shape) + 2
        axis = (0 if batch == 1 else 1) if time is None else time % ndim
        return Entry(batch, axis, shape, dtype, args, kwargs)
    if not isinstance(example, Tensor) or example.ndim < 2:
        raise ExportError(
            f"example is {_described(example)}; give one tensor with a batch and a time axis, as the model "
            "takes it"
        )
    if example.is_floating_point():
        dtype = torch.float32
    elif example.dtype in (torch.int64, torch.int32):
        dtype = torch.int64
    else:
        raise ExportError(f"example has dtype {example.dtype}; a stream has float32 items or int64 tokens")
    axis = -1 if time is None else time % example.ndim
    if axis == batch:
        raise ExportError(f"time and batch are both axis {batch} of the example")
    shape = tuple(s for a, s in enumerate(example.shape) if a not in (axis, batch))
    return Entry(batch, axis, shape, dtype, args, kwargs)


def _described(value: Any) -> str:
    return f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _too_late(plan: Plan, allowed: int) -> ConversionError:
    causes = "; ".join(f"{place} by {float(items):g}" for place, items in plan.delays[:6])
    return ConversionError(
        [
            Refusal(
                "the outputs",
                "",
                "look-ahead",
                f"need {plan.lookahead} input items of the future, convert allows {allowed} ({causes})",
                f"pass lookahead={plan.lookahead} and the outputs lag by so many items, or pad on the left "
                "only (causal convolutions) and train again",
            )
        ]
    )
