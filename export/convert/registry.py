"""Which streaming layer stands for which class of module: by qualified name, without importing it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from streamssm.errors import UsageError
from streamssm.export.convert.refusal import TwinError
from streamssm.export.convert.tracker import Atomic, Rewrite, Treatment, Twin
from streamssm.export.layers.base import StreamingLayer

Factory = Callable[..., StreamingLayer | None]
TimeAxis = int | Callable[[nn.Module], int]


@dataclass(frozen=True)
class _Entry:
    factory: Factory | None = None
    rewrite: Callable[..., Any] | None = None
    time: TimeAxis = 1


_ENTRIES: dict[str, _Entry] = {}


def register(name: str, twin: Factory, *, time: TimeAxis = 1) -> None:
    """Let ``twin(module)`` stand for modules of the class with this qualified name.

    Args:
        name: module and qualified name of the class, such as "mamba_ssm.modules.mamba_simple.Mamba".
        twin: takes the user's module and returns a streaming layer that shares its parameters, with
            items as the module takes them; None for a module that is to be read as user code. With a
            parameter ``window`` it receives convert's.
        time: axis of time in the module's input, or a function of the module that tells it.

    Raises:
        UsageError: the name has no dot, or the twin cannot be called.
    """
    _check(name, twin)
    _ENTRIES[name] = _Entry(factory=twin, time=time)


def register_rewrite(name: str, forward: Callable[..., Any]) -> None:
    """Use ``forward(module, ...)``, in plain torch, as the forward of modules of this class: for
    classes whose own forward calls kernels that only run elsewhere.

    Raises:
        UsageError: as :func:`register`.
    """
    _check(name, forward)
    _ENTRIES[name] = _Entry(rewrite=forward)


def _check(name: str, function: Any) -> None:
    if "." not in name or not callable(function):
        raise UsageError(
            f"register({name!r}, {function!r}): give the class's module and qualified name and a function"
        )


def qualified(cls: type) -> str:
    """Module and qualified name of a class."""
    return f"{cls.__module__}.{cls.__qualname__}"


def registered() -> tuple[str, ...]:
    """All names that are recognised."""
    return tuple(sorted(_ENTRIES))


def find(module: nn.Module, window: int | None) -> Treatment | None:
    """What to do with a module; None for one that is the user's own code.

    A subclass is recognised as long as it does not bring a forward of its own.
    """
    if isinstance(module, StreamingLayer):
        return Twin(module, 1)
    for cls in type(module).__mro__:
        entry = _ENTRIES.get(qualified(cls))
        if entry is not None:
            return _treatment(entry, module, window)
        if "forward" in vars(cls):
            return None
    return None


def _treatment(entry: _Entry, module: nn.Module, window: int | None) -> Treatment | None:
    if entry.factory is None:
        return Rewrite(entry.rewrite)
    options = {"window": window} if "window" in inspect.signature(entry.factory).parameters else {}
    time = entry.time(module) if callable(entry.time) else entry.time
    try:
        layer = entry.factory(module, **options)
        return None if layer is None else Twin(layer, time)
    except TwinError as refused:  # it matters only if the stream runs along its axis of time
        return Twin(refused, time)


def find_treatments(model: nn.Module, atomic: frozenset[str], window: int | None) -> dict[str, Treatment]:
    """What is known of the model's modules: from outside to inside, none within one that is taken."""
    found: dict[str, Treatment] = {}
    for path, module in model.named_modules():
        if any(
            path.startswith(f"{outer}.") or not outer for outer, t in found.items() if isinstance(t, Twin)
        ):
            continue
        # of scripted code torch shows nothing: it is looked at from outside
        whole = path in atomic or isinstance(module, torch.jit.ScriptModule)
        treatment = Atomic() if whole else find(module, window)
        if treatment is not None:
            found[path] = treatment
    return found
