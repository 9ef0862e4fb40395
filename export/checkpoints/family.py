"""What a checkpoint family gives, and a strict reader of its config.

A family is one file with one constant ``FAMILY``: which configs are its own, and ``build``, from
a config to a :class:`Plan`: the model as a streaming layer and, for each of its parameters, the
tensor of the checkpoint that it is, or the tensors that it is made of. Everything else (missing,
extra, wrong shapes and dtypes, tied weights, 16-bit weights) is the same for all families and is
done once, in :mod:`.loading`. :mod:`.mamba` is the shortest example.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from streamssm.errors import ExportError
from streamssm.export.layers.base import StreamingLayer

#: a key that must be there
REQUIRED: Any = object()


@dataclass(frozen=True)
class Source:
    """The tensors of a checkpoint that one parameter is made of.

    ``entry`` = (index, count) takes one of the ``count`` entries of the first axis of each, and only
    that is read: one expert of a stack, say. ``combine`` is also called with meta tensors, to learn
    its result's shape.
    """

    names: tuple[str, ...]
    combine: Callable[..., Tensor] = field(default=lambda tensor: tensor)
    entry: tuple[int, int] | None = None


@dataclass(frozen=True)
class Plan:
    """A family's answer to one config.

    ``layer`` is the whole model, tokens to logits (built on the meta device by the loader).
    ``source`` maps the name of one of its parameters to the name of the checkpoint's tensor, or
    to a :class:`Source`. ``ignored`` are patterns of tensors that mean nothing to the layer, with
    the reason. ``spellings`` are patterns in the names of a checkpoint's tensors, with what stands
    for them in ``source``. ``window_imposed`` is the window if it is not the model's own.
    """

    layer: StreamingLayer
    source: Callable[[str], str | Source]
    ignored: Mapping[str, str] = field(default_factory=dict)
    spellings: Mapping[str, str] = field(default_factory=dict)
    window_imposed: int | None = None


@dataclass(frozen=True)
class Family:
    """One family of checkpoints: its name, the configs that are its own, and how to build it.

    ``build(config, window)`` gets ``window=None`` where the caller gave none. ``recognises`` finds
    configs that ``model_type`` does not tell, and is asked first.
    """

    name: str
    model_types: tuple[str, ...]
    build: Callable[[Keys, int | None], Plan]
    recognises: Callable[[Mapping[str, Any]], bool] = lambda config: False


class Keys:
    """A config, read key by key: what is missing, of the wrong type or out of range is refused.

    Numbers may be written as ``{"__float__": "Infinity"}``, as transformers does. ``null`` counts as
    missing. Nested objects are read with :meth:`table`.
    """

    def __init__(self, values: Mapping[str, Any], where: str = "config.json"):
        self._values = values
        self.where = where

    def __contains__(self, name: str) -> bool:
        return self._values.get(name) is not None

    def whole(self, name: str, default: Any = REQUIRED, minimum: int = 1) -> int:
        """A whole number of at least ``minimum``."""
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise self.refusal(name, value, f"must be a whole number of at least {minimum}")
        return value

    def number(self, name: str, default: Any = REQUIRED, minimum: float = -math.inf) -> float:
        """A real number of at least ``minimum``; infinity is one, NaN is not."""
        value = self._get(name, default)
        found = _number(value)
        if found is None or not found >= minimum:
            raise self.refusal(name, value, "must be a number" + _at_least(minimum))
        return found

    def flag(self, name: str, default: Any = REQUIRED) -> bool:
        """True or false."""
        value = self._get(name, default)
        if not isinstance(value, bool):
            raise self.refusal(name, value, "must be true or false")
        return value

    def text(self, name: str, default: Any = REQUIRED) -> str:
        """A string."""
        value = self._get(name, default)
        if not isinstance(value, str):
            raise self.refusal(name, value, "must be a string")
        return value

    def word(self, name: str) -> str | None:
        """The value if it is a string; for keys that hold a word or a number."""
        value = self._values.get(name)
        return value if isinstance(value, str) else None

    def only(self, *names: str) -> None:
        """Refuse keys with other names."""
        for name, value in self._values.items():
            if name not in names:
                raise self.refusal(name, value, f"is an unknown key; known are {', '.join(names)}")

    def numbers(self, name: str, default: Any = REQUIRED, count: int | None = None) -> tuple[float, ...]:
        """A list of numbers, ``count`` of them."""
        values = self._get(name, default)
        found = [_number(value) for value in values] if isinstance(values, list | tuple) else [None]
        if None in found or (count is not None and len(found) != count):
            raise self.refusal(name, values, f"must be a list of {'' if count is None else count} numbers")
        return tuple(found)

    def texts(self, name: str, default: Any = REQUIRED) -> tuple[str, ...]:
        """A list of strings."""
        values = self._get(name, default)
        if not isinstance(values, list | tuple) or not all(isinstance(value, str) for value in values):
            raise self.refusal(name, values, "must be a list of strings")
        return tuple(values)

    def wholes(self, name: str, default: Any = REQUIRED, minimum: int = 0) -> tuple[int, ...]:
        """A list of whole numbers."""
        values = self._get(name, default)
        whole = isinstance(values, list | tuple) and all(
            isinstance(value, int) and not isinstance(value, bool) and value >= minimum for value in values
        )
        if not whole:
            raise self.refusal(name, values, f"must be a list of whole numbers of at least {minimum}")
        return tuple(values)

    def table(self, name: str, default: Any = REQUIRED) -> Keys:
        """A nested object."""
        value = self._get(name, default)
        if not isinstance(value, Mapping):
            raise self.refusal(name, value, "must be an object of keys")
        return Keys(value, f"{self.where}: {name}")

    def require(self, name: str, *implemented: Any, default: Any = REQUIRED) -> Any:
        """The value, which must be one of those that are implemented."""
        value = self._get(name, default)
        if value not in implemented:
            choices = " or ".join(repr(choice) for choice in implemented)
            raise self.refusal(name, value, f"is not implemented; only {choices} is")
        return value

    def refusal(self, name: str, value: Any, why: str) -> ExportError:
        """The error that names a key, its value and what is wrong with it; raise it."""
        return ExportError(f"{self.where}: {name} = {value!r} {why}")

    def _get(self, name: str, default: Any) -> Any:
        value = self._values.get(name)
        if value is None:
            if default is REQUIRED:
                raise ExportError(f"{self.where}: {name} is missing")
            value = default
        return value


def _number(value: Any) -> float | None:
    if isinstance(value, Mapping) and set(value) == {"__float__"}:
        value = {"Infinity": math.inf, "-Infinity": -math.inf}.get(value["__float__"])
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        return None
    return float(value)


def _at_least(minimum: float) -> str:
    return "" if minimum == -math.inf else f" of at least {minimum:g}"


def renaming(*rules: tuple[str, str]) -> Callable[[str], str]:
    """A ``source`` that rewrites names: for each rule (pattern, replacement), in order, at the start
    of a name or after a dot."""
    compiled = [(re.compile(rf"(?:(?<=^)|(?<=\.)){pattern}"), new) for pattern, new in rules]

    def rename(name: str) -> str:
        for pattern, new in compiled:
            name = pattern.sub(new, name, count=1)
        return name

    return rename


def required_window(window: int | None, layers: Iterable[int]) -> int:
    """The window that attention to everything is narrowed to.

    Raises:
        ExportError: it was not given.
    """
    if window is None:
        seen = ", ".join(str(layer) for layer in layers)
        raise ExportError(
            f"layers {seen} attend to everything before them, which no stream can keep; give a window of n "
            "items with --window n: exact for sequences up to n"
        )
    return window


def no_window(window: int | None, family: str) -> None:
    """Refuse a window for a model without attention.

    Raises:
        ExportError: one was given.
    """
    if window is not None:
        raise ExportError(f"a window of {window} was given, but this {family} model has no attention")
