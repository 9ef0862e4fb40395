"""Rows of one batch that advance on their own: masks for one call, lengths for a whole batch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from streamssm.errors import LayerError
from streamssm.export.layers.base import State, StreamingLayer

Output = Tensor | dict[str, Tensor]


def masked_step(layer: StreamingLayer, x: Tensor, state: State, active: Tensor) -> tuple[Output, State]:
    """One call in which only the ``active`` rows advance.

    The state of the others stays as it is, to the byte, whatever their x holds (NaN included),
    and their outputs are zero.

    Args:
        layer: any streaming layer.
        x: [B, T, *item_shape].
        state: the state of all B rows.
        active: [B] bool.

    Returns:
        y and the next state.

    Raises:
        LayerError: ``active`` is not a bool for each row.
    """
    if active.dtype != torch.bool or active.shape != x.shape[:1]:
        raise LayerError(
            f"active is {active.dtype} of shape {tuple(active.shape)}; "
            f"give a bool for each of {x.shape[0]} rows"
        )
    # what an idle row holds is dropped before the call: a NaN would survive in the gradients
    y, following = layer(_select(active, x, torch.zeros_like(x)), state)
    kept = {name: _select(active, value, state[name]) for name, value in following.items()}
    return _each(lambda value: _select(active, value, torch.zeros_like(value)), y), kept


def forward_ragged(
    layer: StreamingLayer, x: Tensor, lengths: Sequence[int] | Tensor, state: State | None = None
) -> tuple[Output, State]:
    """A batch of sequences of different lengths, padded at their ends.

    The batch is cut at every length that occurs and each piece is a :func:`masked_step`, so
    padding reaches neither outputs nor states.

    Args:
        layer: any streaming layer.
        x: [B, T, *item_shape]; what follows a row's length is never read.
        lengths: items of each row, multiples of the hop and at most T.
        state: the state of all B rows; None for new streams.

    Returns:
        y [B, T * output_ratio, ...], zero after each row's ``length * output_ratio`` items, and
        each row's state after its last item.

    Raises:
        LayerError: the lengths do not fit x or the hop.
    """
    ends = torch.as_tensor(lengths, dtype=torch.int64, device=x.device)
    _check_lengths(layer, x, ends)
    state = layer.init_state(x.shape[0], x.device) if state is None else state
    cuts = sorted({0, *ends.tolist(), x.shape[1]})
    y, state = masked_step(layer, x[:, :0], state, ends > 0)
    pieces = [y]
    for begin, end in itertools.pairwise(cuts):
        y, state = masked_step(layer, x[:, begin:end], state, ends >= end)
        pieces.append(y)
    return _each(lambda *parts: torch.cat(parts, dim=1), *pieces), state


def _each(function: Callable[..., Tensor], *outputs: Output) -> Output:
    """The function of a layer's outputs, or of each of the outputs that have names."""
    if isinstance(outputs[0], Mapping):
        return {name: function(*(output[name] for output in outputs)) for name in outputs[0]}
    return function(*outputs)


def _select(active: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(active.reshape(-1, *[1] * (new.ndim - 1)), new, old)


def _check_lengths(layer: StreamingLayer, x: Tensor, ends: Tensor) -> None:
    if ends.shape != x.shape[:1]:
        raise LayerError(f"lengths has shape {tuple(ends.shape)}; give one for each of {x.shape[0]} rows")
    for length in ends.tolist():
        if not 0 <= length <= x.shape[1] or length % layer.hop:
            raise LayerError(
                f"a length of {length} must be a multiple of the hop of {layer.hop} "
                f"and at most T = {x.shape[1]}"
            )
