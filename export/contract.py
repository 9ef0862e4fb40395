"""``verify_contract``: one test for every streaming layer, ours and yours.

Each check below is one sentence of the contract. The first that does not hold raises a
:class:`~streamssm.errors.GateError` that names the layer, the check and the numbers.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

from streamssm import tolerance
from streamssm.errors import GateError, StreamSSMError
from streamssm.export.layers.base import State, StreamingLayer
from streamssm.export.layers.ragged import forward_ragged, masked_step

Reference = Callable[[np.ndarray], Any]
Results = dict[str, Tensor]

HALF_TYPES = (torch.float16, torch.bfloat16)


def verify_contract(
    layer: StreamingLayer,
    *,
    items: int | None = None,
    batch: int = 3,
    x: Tensor | None = None,
    reference: Reference | None = None,
    splits: int | Iterable[Sequence[int]] = 4,
    seed: int = 0,
) -> None:
    """Check that a layer keeps the streaming contract; silent when it does.

    Args:
        layer: the layer; it is not changed, a float32 copy on the CPU is checked.
        items: length of the random input, at least two hops; 24 hops by default.
        batch: rows of the random input, at least 2.
        x: [batch, items, *item_shape] instead of random input; a layer with integer items and
            no ``vocabulary``, or that takes any item shape, needs it.
        reference: float64 definition to compare with: takes x from the start of a stream as
            a float64 (or int64) array and returns y, or y and a dictionary of final states.
        splits: lengths of the pieces to cut the input into, or how many random cuts to try.
        seed: of the random input and cuts.

    Raises:
        GateError: the layer breaks the contract; the message says where and by how much.
    """
    subject = copy.deepcopy(layer).cpu().float().eval()
    given = _input(subject, items or 24 * subject.hop, batch, seed) if x is None else x
    if given.shape[0] < 2 or given.shape[1] < 2 * subject.hop or given.shape[1] % subject.hop:
        detail = (
            f"x is {tuple(given.shape)}; give 2 rows or more, T a multiple of {subject.hop}, 2 hops or more"
        )
        raise _broken(subject, "input", detail)
    try:
        with torch.no_grad():
            case = _Case(subject, given, random.Random(seed), *_run(subject, given))
            for check in CHECKS:
                check(case)
            _check_splits(case, splits)
            _check_float64(case, reference)
        _check_gradients(case)
    except GateError:
        raise
    except (StreamSSMError, RuntimeError, TypeError, KeyError, IndexError) as error:
        raise _broken(subject, "call", f"{type(error).__name__}: {error}") from error


@dataclass(frozen=True)
class _Case:
    """A layer, an input from the start of a stream, and what the whole-sequence call gives."""

    layer: StreamingLayer
    x: Tensor
    random: random.Random
    y: Results
    state: State

    @property
    def hops(self) -> int:
        return self.x.shape[1] // self.layer.hop

    def cut(self, margin: int = 0) -> int:
        """A random place to cut x at, a multiple of the hop, ``margin`` hops from both ends."""
        return self.random.randint(margin, max(self.hops - margin, 0)) * self.layer.hop

    def expect(self, check: str, y: Results, state: State, whole: tuple[Results, State]) -> None:
        """Outputs and final states equal, within the table; integer states exactly."""
        for found, wanted, what in ((y, whole[0], "output"), (state, whole[1], "state")):
            for name, value in wanted.items():
                _compare(self.layer, check, f"{what} {name!r}", found[name], value)


def _check_state_spec(case: _Case) -> None:
    """State names, shapes and dtypes are as announced; output items are T * output_ratio."""
    layer, B = case.layer, case.x.shape[0]
    for moment, state in (("first", layer.init_state(B)), ("next", case.state)):
        _check_spec(layer, state, B, f"the {moment} state")
    for name, value in layer.init_state(B).items():
        if value.count_nonzero():
            raise _broken(
                layer, "state", f"{name!r} does not start at zero; store the difference from its start"
            )
    for name, y in case.y.items():
        expected = case.x.shape[1] * Fraction(layer.ratio_of(name))
        if tuple(y.shape[:2]) != (B, expected):
            raise _broken(layer, "output count", f"output {name!r} is {tuple(y.shape)} for {expected} items")


def _check_purity(case: _Case) -> None:
    """A call changes neither the state it was given nor the layer."""
    layer, x = case.layer, case.x
    half = case.cut()
    _, state = _run(layer, x[:, :half])
    before = {name: value.clone() for name, value in state.items()}
    _run(layer, x[:, half:], state)
    for name, value in before.items():
        if not _identical(state[name], value):
            raise _broken(layer, "purity", f"the call wrote into the state {name!r} that it was given")
    case.expect("reset equals fresh", *_run(layer, x), (case.y, case.state))


def _check_empty(case: _Case) -> None:
    """T = 0 gives no items and the same state, to the byte."""
    y, state = _run(case.layer, case.x[:, :0], case.state)
    for name, value in y.items():
        if value.shape[1] or value.shape[2:] != case.y[name].shape[2:]:
            raise _broken(case.layer, "T = 0", f"output {name!r} is {tuple(value.shape)}")
    for name, value in state.items():
        if not _identical(value, case.state[name]):
            raise _broken(case.layer, "T = 0", f"the state {name!r} changed")


def _check_rows(case: _Case) -> None:
    """Each row alone gives what it gives in the batch, even beside a row of NaN."""
    for row in range(case.x.shape[0]):
        alone = _run(case.layer, case.x[row : row + 1])
        case.expect(f"row {row} alone", *alone, _rows((case.y, case.state), [row]))
    kept = list(range(1, case.x.shape[0]))
    poisoned = torch.cat([_poison(case.layer, case.x[:1]), case.x[1:]])
    beside = _rows(_run(case.layer, poisoned), kept)
    case.expect("row 0 poisoned", *beside, _rows((case.y, case.state), kept))


def _check_causality(case: _Case) -> None:
    """Items that come later change nothing: other values in the call, NaN in the next call."""
    layer, x, cut = case.layer, case.x, case.cut(margin=1)
    other = torch.cat([x[:, :cut], x[:, cut:].roll(1, 0)], dim=1)
    y, _ = _run(layer, other)
    early = _until(layer, case.y, cut)
    case.expect(f"items after {cut} changed", _until(layer, y, cut), {}, (early, {}))
    y, state = _run(layer, x[:, :cut])
    _run(layer, _poison(layer, x[:, cut:]), state)
    case.expect(f"NaN after {cut}", y, state, (early, state))


def _check_masks(case: _Case) -> None:
    """Rows that are not active keep their state to the byte; the others do not notice."""
    layer, x = case.layer, case.x
    cut, B = case.cut(), x.shape[0]
    active = torch.arange(B) % 2 == case.random.randint(0, 1)
    rows, idle = active.nonzero()[:, 0].tolist(), (~active).nonzero()[:, 0].tolist()
    _, state = _run(layer, x[:, :cut])
    chunk = torch.where(_column(active, x), x, _poison(layer, x))[:, cut:]
    y, following = masked_step(layer, chunk, state, active)
    for name, value in following.items():
        if not _identical(value[idle], state[name][idle]):
            raise _broken(layer, "masks", f"the state {name!r} of an inactive row changed")
    late = {name: value[:, int(cut * layer.ratio_of(name)) :] for name, value in case.y.items()}
    case.expect("masks", *_rows((_named(y), following), rows), _rows((late, case.state), rows))


def _check_ragged(case: _Case) -> None:
    """Rows of different lengths, padded with NaN, give what each row gives alone."""
    layer, x = case.layer, case.x
    lengths = [case.cut() for _ in range(x.shape[0] - 1)] + [x.shape[1]]
    padding = torch.arange(x.shape[1]) >= torch.tensor(lengths)[:, None]
    padded = torch.where(padding.reshape(*padding.shape, *[1] * (x.ndim - 2)), _poison(layer, x), x)
    y, state = forward_ragged(layer, padded, lengths)
    for row, length in enumerate(lengths):
        alone = _run(layer, x[row : row + 1, :length])
        found, final = _rows((_named(y), state), [row])
        case.expect(f"ragged row of {length}", _until(layer, found, length), final, alone)


def _check_dtypes(case: _Case) -> None:
    """With 16-bit weights the states keep their dtypes and y has that of the data."""
    for dtype in HALF_TYPES:
        rounded = copy.deepcopy(case.layer).to(dtype)
        x = case.x.to(dtype) if case.x.is_floating_point() else case.x
        try:
            y, state = _run(rounded, x)
        except RuntimeError as error:
            if "not implemented for" in str(error):  # this CPU lacks the operator
                continue
            raise
        _check_spec(rounded, state, x.shape[0], f"the state of the {dtype} layer")
        exact = _run_float64(rounded, x)
        for name, value in y.items():
            if value.dtype != dtype:
                raise _broken(
                    rounded, "dtypes", f"output {name!r} is {value.dtype} for {dtype} weights and data"
                )
            _compare(rounded, str(dtype), f"output {name!r}", value, exact[0][name], dtype)


CHECKS = (
    _check_state_spec,
    _check_purity,
    _check_empty,
    _check_rows,
    _check_causality,
    _check_masks,
    _check_ragged,
    _check_dtypes,
)


def _check_splits(case: _Case, splits: int | Iterable[Sequence[int]]) -> None:
    """Any split gives the outputs and the final state of the whole."""
    if isinstance(splits, int):
        hop, hops = case.layer.hop, case.hops
        cuts = [[hop] * hops, [0, hop, 0, (hops - 1) * hop]]
        cuts += [random_split(case.random, case.x.shape[1], hop) for _ in range(splits)]
    else:
        cuts = [list(split) for split in splits]
    for split in cuts:
        case.expect(f"split {split}", *_run_split(case.layer, case.x, split), (case.y, case.state))


def random_split(generator: random.Random, items: int, hop: int = 1) -> list[int]:
    """Lengths of pieces that add up to ``items``, empty pieces and single hops among them."""
    lengths, left = [], items // hop
    while left:
        length = min(generator.choice((0, 1, 1, 2, 3, 5, 8, 13, left)), left)
        lengths.append(length * hop)
        left -= length
    return lengths


def _check_float64(case: _Case, reference: Reference | None) -> None:
    """The float32 result equals that of float64, which equals the given definition."""
    exact = _run_float64(case.layer, case.x)
    case.expect("float64", case.y, case.state, exact)
    if reference is None:
        return
    x = case.x.double() if case.x.is_floating_point() else case.x
    result = reference(x.numpy())
    wanted_y, wanted_state = result if isinstance(result, tuple) else (result, {})
    pairs = [(f"output {n!r}", exact[0][n], v) for n, v in _named(wanted_y).items()]
    pairs += [(f"state {n!r}", exact[1][n], v) for n, v in wanted_state.items()]
    for what, found, wanted in pairs:
        _compare(case.layer, "reference", what, found, torch.as_tensor(wanted), torch.float64)


def _check_gradients(case: _Case) -> None:
    """Every trainable parameter gets a finite gradient, through a carried state too."""
    layer, cut = case.layer, case.layer.hop
    layer.zero_grad()
    y, state = _run_split(layer, case.x, [cut, case.x.shape[1] - cut])
    terms = [value.float().square().mean() for value in (*y.values(), *state.values()) if value.requires_grad]
    parameters = {name: p for name, p in layer.named_parameters() if p.requires_grad}
    if parameters and not terms:
        raise _broken(layer, "gradients", "no output depends on the parameters")
    if terms:
        torch.stack(terms).sum().backward()
    for name, parameter in parameters.items():
        if parameter.grad is None:
            raise _broken(layer, "gradients", f"none reaches {name!r}")
        if not parameter.grad.isfinite().all():
            raise _broken(layer, "gradients", f"that of {name!r} is not finite")


# --- helpers ------------------------------------------------------------------------------


def _input(layer: StreamingLayer, items: int, batch: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if layer.item_shape is None:
        raise _broken(layer, "input", "it takes any item shape; give x")
    shape = (batch, items, *layer.item_shape)
    if layer.item_dtype.is_floating_point:
        return torch.randn(shape, generator=generator)
    if layer.vocabulary is None:
        raise _broken(layer, "input", "it takes integers but has no vocabulary; give x")
    return torch.randint(layer.vocabulary, shape, generator=generator)


def _named(y: Any) -> Results:
    return dict(y) if isinstance(y, Mapping) else {"y": y}


def _until(layer: StreamingLayer, y: Results, items: int) -> Results:
    """What belongs to the first ``items`` input items."""
    return {name: value[:, : int(items * layer.ratio_of(name))] for name, value in y.items()}


def _run(layer: StreamingLayer, x: Tensor, state: State | None = None) -> tuple[Results, State]:
    y, state = layer(x, layer.init_state(x.shape[0]) if state is None else state)
    return _named(y), state


def _run_split(layer: StreamingLayer, x: Tensor, lengths: Sequence[int]) -> tuple[Results, State]:
    state = layer.init_state(x.shape[0])
    pieces = []
    for chunk in x.split(list(lengths), dim=1):
        y, state = _run(layer, chunk, state)
        pieces.append(y)
    return {name: torch.cat([y[name] for y in pieces], dim=1) for name in pieces[0]}, state


def _run_float64(layer: StreamingLayer, x: Tensor) -> tuple[Results, State]:
    double = copy.deepcopy(layer).double()
    state = {n: v.double() if v.is_floating_point() else v for n, v in layer.init_state(x.shape[0]).items()}
    return _run(double, x.double() if x.is_floating_point() else x, state)


def _rows(result: tuple[Results, State], rows: list[int]) -> tuple[Results, State]:
    y, state = result
    return {name: value[rows] for name, value in y.items()}, {
        name: value[rows] for name, value in state.items()
    }


def _poison(layer: StreamingLayer, x: Tensor) -> Tensor:
    """NaN in place of x; for integers, which have none, other valid values."""
    return torch.full_like(x, torch.nan) if x.is_floating_point() else x.flip(1)


def _column(mask: Tensor, like: Tensor) -> Tensor:
    return mask.reshape(-1, *[1] * (like.ndim - 1))


def _identical(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.nan_to_num(), b.nan_to_num())


def _check_spec(layer: StreamingLayer, state: State, batch: int, what: str) -> None:
    spec = layer.state_spec()
    if list(state) != list(spec):
        raise _broken(layer, "state", f"{what} has {list(state)}, state_spec has {list(spec)}, in this order")
    for name, wanted in spec.items():
        found, shape = state[name], (batch, *wanted.shape)
        if wanted.dtype not in (torch.float32, torch.int64):
            raise _broken(layer, "state", f"{name!r} is {wanted.dtype}; states are float32, positions int64")
        if tuple(found.shape) != shape or found.dtype != wanted.dtype:
            raise _broken(
                layer,
                "state",
                f"{name!r} of {what} is {found.dtype} {tuple(found.shape)}, not {wanted.dtype} {shape}",
            )


def _compare(
    layer: StreamingLayer,
    check: str,
    what: str,
    found: Tensor,
    wanted: Tensor,
    dtype: torch.dtype = torch.float32,
) -> None:
    if found.shape != wanted.shape:
        raise _broken(layer, check, f"{what} is {tuple(found.shape)}, not {tuple(wanted.shape)}")
    if not found.is_floating_point():
        if not torch.equal(found, wanted):
            raise _broken(layer, check, f"{what} is {found.tolist()}, not {wanted.tolist()}")
        return
    a, b, name = found.double().numpy(), wanted.double().numpy(), str(dtype).removeprefix("torch.")
    if not tolerance.within(a, b, name):
        largest, relative = tolerance.error(a, b)
        bounds = tolerance.tolerance(name)
        raise _broken(
            layer,
            check,
            f"{what} is off by {largest:.3g}, {relative:.3g} relative; "
            f"{name} allows {bounds.rtol:.3g} relative + {bounds.atol:.3g}",
        )


def _broken(layer: StreamingLayer, check: str, detail: str) -> GateError:
    return GateError(f"{type(layer).__name__} breaks the streaming contract ({check}): {detail}")
