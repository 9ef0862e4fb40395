"""What torch function is called, with what: names, arguments as leaves, the user's line of code."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

#: functions that tell about a tensor and not about its values
PASSING = frozenset(
    [
        "size",
        "dim",
        "ndimension",
        "numel",
        "nelement",
        "__len__",
        "is_contiguous",
        "is_floating_point",
        "is_complex",
        "is_signed",
        "element_size",
        "get_device",
        "stride",
        "storage_offset",
        "__hash__",
        "__repr__",
        "is_inference",
        "is_same_size",
        "type",
        "result_type",
        "can_cast",
        "promote_types",
        "requires_grad_",
        "has_names",
        "is_pinned",
        "is_conj",
        "is_neg",
        "is_coalesced",
        "__dir__",
        "__reduce_ex__",
        "register_hook",
        "retain_grad",
        "_is_view",
        "is_shared",
        "__format__",
        "is_distributed",
    ]
)
#: functions whose result has the shape and dtype of a tensor but none of its values
LIKE = frozenset(
    [
        "zeros_like",
        "ones_like",
        "full_like",
        "empty_like",
        "new_zeros",
        "new_ones",
        "new_full",
        "new_empty",
        "new_tensor",
    ]
)
#: functions whose second argument gives a dtype or a shape and none of its values
AFTER = frozenset(["to", "type_as", "expand_as", "view_as", "reshape_as"])
#: functions that move data, item by item of time: padding stays padding
MOVES = frozenset(
    [
        "transpose",
        "permute",
        "contiguous",
        "movedim",
        "moveaxis",
        "swapaxes",
        "swapdims",
        "unsqueeze",
        "squeeze",
        "clone",
        "detach",
        "float",
        "double",
        "to",
        "type_as",
        "dropout",
        "expand",
        "expand_as",
        "alias",
        "requires_grad_",
    ]
) | {"get mT", "get T", "get data"}
#: functions that keep the row-major order of the elements
RESHAPES = frozenset(
    ["view", "reshape", "flatten", "unflatten", "view_as", "reshape_as", "ravel", "squeeze", "unsqueeze"]
)
EXPANDS = frozenset(["expand", "expand_as", "broadcast_to"])

_HERE = str(Path(__file__).parent)
_TORCH = str(Path(torch.__file__).parent)


def name_of(func: Callable) -> str:
    """The name of a torch function; of the getter of an attribute "get <attribute>"."""
    name = getattr(func, "__name__", type(func).__name__)
    if name in ("__get__", "__set__", "__delete__"):
        owner = getattr(getattr(func, "__self__", None), "__name__", "?")
        return f"{name.strip('_')} {owner}"
    return name


def writes_in_place(name: str, kwargs: dict) -> bool:
    """Whether the call changes its first argument."""
    if name == "__setitem__" or (kwargs.get("inplace") is True):
        return True
    if name.startswith("__"):
        return name.startswith("__i") and name not in ("__invert__", "__index__", "__int__")
    return name.endswith("_") and not name.endswith("__")


def leaves_of(value: Any) -> tuple[list[Any], TreeSpec]:
    """The values in nested tuples, lists and dictionaries."""
    return tree_flatten(value)


def tensors_of(value: Any) -> list[Tensor]:
    """The tensors in nested tuples, lists and dictionaries."""
    return [leaf for leaf in leaves_of(value)[0] if isinstance(leaf, Tensor)]


def rebuilt(leaves: Sequence[Any], spec: TreeSpec) -> Any:
    """The inverse of :func:`leaves_of`."""
    return tree_unflatten(list(leaves), spec)


def bind(names: Sequence[str], args: tuple, kwargs: dict) -> dict[str, Any]:
    """Arguments by name, for functions whose signature torch does not tell."""
    return dict(zip(names, args, strict=False)) | kwargs


def line_of_user() -> str:
    """Where in the user's code the present call comes from: the first frame beyond torch and us."""
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith((_HERE, _TORCH, "<")):
            return f"{Path(file).name}:{frame.f_lineno}"
        frame = frame.f_back
    return ""
