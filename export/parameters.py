"""The parameters of a model apart from the model: read one at a time, never all twice.

A model is traced as a shell, whose parameters have shapes and no values, and is run for reference
with parameters that are read when an operation wants them. So exporting needs little more memory
than the largest tensor, wherever the weights come from: the model itself, or a checkpoint's files.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamssm.errors import ExportError
from streamssm.export.layers.base import StreamingLayer

#: a function that reads one tensor
Reader = Callable[[], Tensor]
#: a model of so few parameters is copied in float64 for reference
SMALL = 1 << 24
#: numbers of a matrix that change their dtype at a time
_BLOCK = 1 << 19


@dataclass(frozen=True)
class Parameter:
    """One parameter: all of its names, of which a shared one has several, its shape, and its values."""

    names: tuple[str, ...]
    shape: tuple[int, ...]
    source: Reader

    def read(self) -> Tensor:
        """The values, float32 on the CPU.

        Raises:
            ExportError: another shape or dtype, NaN, or infinity.
        """
        value, name = self.source().detach(), self.names[0]
        if tuple(value.shape) != self.shape:
            raise ExportError(f"weight {name} has shape {list(value.shape)}, the model {list(self.shape)}")
        if value.dtype != torch.float32:
            raise ExportError(f"weight {name} has dtype {value.dtype}; make it float32 before exporting")
        # the extremes are NaN if any value is, and take no memory to find
        if value.numel() and not all(bound.isfinite() for bound in value.aminmax()):
            raise ExportError(f"weight {name} holds NaN or infinity; the training has diverged")
        return value.cpu()

    def array(self) -> np.ndarray:
        """The values as numpy sees them."""
        return self.read().numpy()


def parameters_of(layer: nn.Module, weights: Mapping[str, Reader] | None) -> list[Parameter]:
    """Every parameter of ``layer``, its values from ``weights`` where that is given, under any of
    the parameter's names; else the layer's own.

    Raises:
        ExportError: a parameter has no values, or ``weights`` holds a name that the layer has not.
    """
    given = {} if weights is None else weights
    aliases: dict[int, list[str]] = {}
    own: dict[int, nn.Parameter] = {}
    for name, parameter in layer.named_parameters(remove_duplicate=False):
        aliases.setdefault(id(parameter), []).append(name)
        own[id(parameter)] = parameter
    known = {name for names in aliases.values() for name in names}
    unknown = sorted(set(given) - known)
    if unknown:
        raise ExportError(f"weights holds {unknown[0]!r}, which the model has not ({len(unknown)} such)")
    return [_parameter(names, own[key], given) for key, names in aliases.items()]


def _parameter(names: list[str], own: nn.Parameter, given: Mapping[str, Reader]) -> Parameter:
    if own.dtype != torch.float32:
        raise ExportError(f"weight {names[0]} has dtype {own.dtype}; call model.float() before exporting")
    source = next((given[name] for name in names if name in given), None)
    if source is None:
        if own.is_meta:
            raise ExportError(f"weight {names[0]} is on the meta device and not in weights=; give its values")
        source = own.detach
    return Parameter(tuple(names), tuple(own.shape), source)


def parameter_count(parameters: Iterable[Parameter]) -> int:
    """How many numbers they hold."""
    return sum(int(np.prod(parameter.shape, dtype=np.int64)) for parameter in parameters)


def shell(layer: StreamingLayer) -> StreamingLayer:
    """A copy on the CPU, in evaluation mode, whose parameters have shapes and no values.

    What should be a value is NaN: an operation that used one would be noticed at once.

    Raises:
        ExportError: a buffer is on the meta device.
    """

    def empty(parameter: Tensor) -> nn.Parameter:
        # one number that is repeated: real to torch's tracing, and of no size
        nothing = torch.full((), torch.nan, dtype=parameter.dtype).expand(parameter.shape)
        return nn.Parameter(nothing, requires_grad=False)

    return _copied(layer, empty)


def reference(
    layer: StreamingLayer, parameters: Sequence[Parameter], dtype: torch.dtype = torch.float64
) -> StreamingLayer:
    """A copy that computes in ``dtype``, on the CPU.

    Of a large model it holds no weights: each is read, and brought to the dtype, for the operation
    that uses it.

    Raises:
        ExportError: a buffer is on the meta device, or values of a parameter are not usable.
    """
    if parameter_count(parameters) <= SMALL:
        values = {name: parameter for parameter in parameters for name in parameter.names}
        own = {id(value): name for name, value in layer.named_parameters()}
        return _copied(layer, lambda p: nn.Parameter(values[own[id(p)]].read().to(dtype), False)).to(dtype)
    # on meta while the buffers change their dtype
    made = _copied(layer, lambda p: nn.Parameter(torch.empty_like(p, device="meta"), False)).to(dtype)
    for parameter in parameters:
        value = _LateTensor.of(parameter, dtype)
        for name in parameter.names:
            owner, _, leaf = name.rpartition(".")
            made.get_submodule(owner)._parameters[leaf] = value  # type: ignore[assignment]
    for module in made.modules():
        if isinstance(module, nn.RNNBase):  # it keeps a list of its own
            module._flat_weights = [module._parameters[name] for name in module._flat_weights_names]
    return made


def _copied(layer: StreamingLayer, replacement: Callable[[Tensor], nn.Parameter]) -> StreamingLayer:
    """A deep copy, on the CPU, with other parameters, shared where they were shared."""
    for name, buffer in layer.named_buffers():
        if buffer.is_meta:
            raise ExportError(f"buffer {name} is on the meta device and no weight; build it on the CPU")
    memo = {id(parameter): replacement(parameter) for parameter in layer.parameters()}
    made = copy.deepcopy(layer, memo).eval()
    return made if all(buffer.device.type == "cpu" for buffer in made.buffers()) else made.cpu()


class _LateTensor(Tensor):
    """Shape and dtype of a parameter; any operation on it reads its values first."""

    parameter: Parameter

    @staticmethod
    def of(parameter: Parameter, dtype: torch.dtype) -> _LateTensor:
        # a tensor subclass of no storage; torch has no public name for its maker
        late = Tensor._make_subclass(_LateTensor, torch.empty(parameter.shape, dtype=dtype, device="meta"))
        late.parameter = parameter
        return late

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        named = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            if function is _DEVICE:
                return torch.device("cpu")
            if function in _METADATA:
                return function(*args, **named)
            special, place = _SPECIAL.get(function, (None, 0))
            if special is not None and isinstance(args[place], cls):
                return special(*args, **named)
            return function(*_filled(args), **{key: _filled(value) for key, value in named.items()})


def _embedding(x: Tensor, table: _LateTensor, *rest: Any, **named: Any) -> Tensor:
    """The rows, not the table, change their dtype."""
    return F.embedding(x, table.parameter.read(), *rest, **named).to(_dtype(table))


def _linear(x: Tensor, weight: _LateTensor, bias: Tensor | None = None) -> Tensor:
    """A few rows at a time change their dtype, in one place."""
    rows, flat = weight.parameter.read(), x.reshape(-1, x.shape[-1])
    count = max(1, _BLOCK // max(1, rows.shape[1]))
    place = torch.empty(min(count, len(rows)), rows.shape[1], dtype=x.dtype)
    y = flat.new_empty(len(flat), len(rows))
    for start in range(0, len(rows), count):
        part = rows[start : start + count]
        torch.mm(flat, place[: len(part)].copy_(part).T, out=y[:, start : start + len(part)])
    y = y.reshape(*x.shape[:-1], len(rows))
    return y if bias is None else y.add_(_filled(bias))


def _part(stack: _LateTensor, index: Any) -> Tensor:
    """One of many matrices, not all of them, changes its dtype."""
    return stack.parameter.read()[index].to(_dtype(stack))


#: operations that need not have the whole tensor in another dtype, and which of their arguments it is
_SPECIAL: dict[Callable[..., Any], tuple[Callable[..., Any], int]] = {
    F.embedding: (_embedding, 1),
    F.linear: (_linear, 1),
    Tensor.__getitem__: (_part, 0),
}


def _filled(value: Any) -> Any:
    """The same with every late tensor in it read."""
    if isinstance(value, _LateTensor):
        return value.parameter.read().to(_dtype(value))
    if type(value) in (list, tuple):
        return type(value)(_filled(item) for item in value)
    return value


def _dtype(late: _LateTensor) -> torch.dtype:
    with torch._C.DisableTorchFunctionSubclass():
        return late.dtype


_DEVICE = Tensor.device.__get__  # type: ignore[attr-defined]
#: what is known of a tensor without its values
_METADATA = {
    Tensor.shape.__get__,  # type: ignore[attr-defined]
    Tensor.dtype.__get__,  # type: ignore[attr-defined]
    Tensor.ndim.__get__,  # type: ignore[attr-defined]
    Tensor.requires_grad.__get__,  # type: ignore[attr-defined]
    Tensor.size,
    Tensor.dim,
    Tensor.numel,
    Tensor.is_floating_point,
    Tensor.is_complex,
    Tensor.__len__,
}
