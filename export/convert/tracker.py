"""Watching a forward: which torch functions and marked modules the stream passes through.

The same calls are counted in the same order whether a model is analysed, streamed or
exported: call number n of a stream is step n of the plan.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from streamssm.export.convert.calls import AFTER, LIKE, PASSING, name_of, tensors_of, writes_in_place
from streamssm.export.convert.refusal import TwinError
from streamssm.export.layers.base import State, StreamingLayer


@dataclass(frozen=True)
class Twin:
    """A module that a streaming layer stands for; ``time`` is the axis of time in its input.
    ``layer`` may be the reason why none can."""

    layer: StreamingLayer | TwinError
    time: int
    #: why the module's own forward did not run, if it did not
    failures: list[str] = field(default_factory=list)

    def guarded(self, forward: Callable) -> Callable:
        """The module's own forward; the layer's whole sequence where that does not run."""

        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                return forward(*args, **kwargs)
            except Exception as error:
                try:
                    y = self._whole(args, kwargs)
                except Exception:
                    raise error from None
                self.failures.append(f"{type(error).__name__}: {error}".splitlines()[0])
                return y

        return call

    def _whole(self, args: tuple, kwargs: dict) -> Tensor:
        x = tensors_of((args, kwargs))[0]
        time = self.time % x.ndim
        axes = (1 if time == 0 else 0, time)
        rows = x.movedim(axes, (0, 1))
        state = self.layer.init_state(rows.shape[0], rows.device)
        state = {k: v.to(rows.dtype) if v.is_floating_point() else v for k, v in state.items()}
        return call_twin(self.layer, rows, state, args, kwargs)[0].movedim((0, 1), axes)


def call_twin(
    layer: StreamingLayer, rows: Tensor, state: State, args: tuple, kwargs: dict[str, Any]
) -> tuple[Tensor, State]:
    """The layer on rows [B, T, ...]; one with a method ``call`` sees the user's other arguments."""
    if hasattr(layer, "call"):
        return layer.call(rows, state, args, kwargs)
    return layer(rows, state)


@dataclass(frozen=True)
class Atomic:
    """A module that is looked at from outside only."""


@dataclass(frozen=True)
class Rewrite:
    """A module whose forward is replaced by ``forward(module, ...)`` in plain torch."""

    forward: Callable[..., Any]


Treatment = Twin | Atomic | Rewrite


class Tracker(TorchFunctionMode):
    """Counts the calls that touch tensors made from the stream, and hands them to :meth:`counted`."""

    #: whether twins are called by the steps, and the modules' own forwards not at all
    streams = False

    def __init__(self) -> None:
        super().__init__()
        self.paused = 0
        self.modules: list[tuple[str, str]] = []

    def counted(self, name: str, func: Callable, args: tuple, kwargs: dict) -> Any:
        """Do call number n."""
        raise NotImplementedError

    def follow(self, value: Any) -> None:
        """Remember the tensors in ``value`` as made from the stream."""
        raise NotImplementedError

    def followed(self, x: Tensor) -> bool:
        """Whether x is made from the stream."""
        raise NotImplementedError

    @property
    def path(self) -> tuple[str, str]:
        """Path and class of the module whose forward runs."""
        return self.modules[-1] if self.modules else ("", "")

    def __torch_function__(self, func: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.paused:
            return func(*args, **kwargs)
        name = name_of(func)
        if name in AFTER and not self._touched(args[:1], {}):
            return func(*args, **kwargs)
        if name in PASSING or name in LIKE or not self._touched(args, kwargs):
            return func(*args, **kwargs)
        if name.startswith("get "):
            value = func(*args, **kwargs)
            if not isinstance(value, Tensor):
                return value
        return self._count(name, func, args, kwargs)

    def call_module(self, forward: Callable, label: str, args: tuple, kwargs: dict) -> Any:
        """A marked module: one call, whatever happens inside."""

        def quiet(*args: Any, **kwargs: Any) -> Any:
            self.paused += 1
            try:
                return forward(*args, **kwargs)
            finally:
                self.paused -= 1

        if self.paused or not self._touched(args, kwargs):
            return quiet(*args, **kwargs)
        return self._count(label, quiet, args, kwargs)

    def _count(self, name: str, func: Callable, args: tuple, kwargs: dict) -> Any:
        self.paused += 1
        try:
            result = self.counted(name, func, args, kwargs)
        finally:
            self.paused -= 1
        self.follow(result)
        if writes_in_place(name, kwargs):
            self.follow(args[0])
        return result

    def _touched(self, args: tuple, kwargs: dict) -> bool:
        return any(self.followed(x) for x in tensors_of((args, kwargs)))


class Follower(Tracker):
    """A tracker that keeps what it follows until it is dropped itself."""

    def __init__(self) -> None:
        super().__init__()
        self._kept: dict[int, Tensor] = {}

    def follow(self, value: Any) -> None:
        """Remember."""
        self._kept.update((id(x), x) for x in tensors_of(value))

    def followed(self, x: Tensor) -> bool:
        """Whether it is remembered."""
        return id(x) in self._kept


def label_of(module: nn.Module) -> str:
    """What a marked module is called among the functions."""
    return f"{type(module).__name__}.forward"


@contextlib.contextmanager
def watching(model: nn.Module, tracker: Tracker, treatments: Mapping[str, Treatment]) -> Iterator[None]:
    """Within it the tracker sees every call of ``model``'s forward."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.compiler.set_stance("force_eager"))  # compiled code would hide its calls
        for path, treatment in treatments.items():
            stack.enter_context(_replaced(model.get_submodule(path), treatment, tracker))
        if not torch.compiler.is_exporting():  # names are for messages; hooks would be traced
            stack.enter_context(_named(model, tracker))
        stack.enter_context(tracker)
        yield


@contextlib.contextmanager
def rewritten(model: nn.Module, treatments: Mapping[str, Treatment]) -> Iterator[None]:
    """Within it modules with a rewritten forward use that one, and twins stand in where they must."""
    with contextlib.ExitStack() as stack:
        for path, treatment in treatments.items():
            stack.enter_context(_replaced(model.get_submodule(path), treatment, None))
        yield


@contextlib.contextmanager
def _replaced(module: nn.Module, treatment: Treatment, tracker: Tracker | None) -> Iterator[None]:
    """The module's forward replaced on the instance; put back at the end."""
    own = module.__dict__.get("forward")
    forward = module.forward
    if isinstance(treatment, Twin) and not (tracker is not None and tracker.streams):
        forward = treatment.guarded(forward)

    def atomic(*args: Any, **kwargs: Any) -> Any:
        if tracker is None:
            return forward(*args, **kwargs)
        return tracker.call_module(forward, label_of(module), args, kwargs)

    rewrite = isinstance(treatment, Rewrite)
    module.__dict__["forward"] = functools.partial(treatment.forward, module) if rewrite else atomic
    try:
        yield
    finally:
        del module.__dict__["forward"]
        if own is not None:
            module.__dict__["forward"] = own


@contextlib.contextmanager
def _named(model: nn.Module, tracker: Tracker) -> Iterator[None]:
    """The tracker knows the path of the module whose forward runs."""
    handles = []
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):  # takes no hooks
            continue
        name = (path, type(module).__name__)

        def enter(module: nn.Module, args: Any, name: tuple[str, str] = name) -> None:
            if not tracker.paused:
                tracker.modules.append(name)

        def leave(module: nn.Module, args: Any, result: Any, name: tuple[str, str] = name) -> None:
            if not tracker.paused and tracker.modules and tracker.modules[-1] == name:
                tracker.modules.pop()

        handles.append(module.register_forward_pre_hook(enter))
        handles.append(module.register_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
