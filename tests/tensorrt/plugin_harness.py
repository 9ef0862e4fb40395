"""plugin_harness.cpp from Python: what TensorRT does to the plugin library, one method each.

Only the standard library, so that it also runs in a bare interpreter under emulation.
"""

from __future__ import annotations

import ctypes
from ctypes import c_char_p, c_int32, c_int64, c_void_p
from typing import Any, NamedTuple

# nvinfer1::DataType, nvinfer1::PluginFieldType, nvinfer1::TensorRTPhase
FLOAT32, FLOAT16, INT8, INT32, BFLOAT16, INT64 = 0, 1, 2, 3, 7, 8
FIELD_FLOAT32, FIELD_FLOAT64, FIELD_INT32, FIELD_CHAR, FIELD_INT64 = 1, 2, 5, 6, 10
BUILD, RUNTIME = 0, 1
LINEAR, CHW32 = 0, 5
# what a builder knows of shapes; see Bounds in plugin_harness.cpp
NO_BOUNDS, SAME_BOUNDS, OPEN = 0, 1, 2

NAMES = ("CausalConv1d", "SelectiveScan", "StateSpaceDual", "SlidingWindowAttention", "LogMel")
ATTRIBUTES: dict[str, dict[str, int | float]] = {
    "CausalConv1d": {"silu": 1},
    "SelectiveScan": {},
    "StateSpaceDual": {},
    "SlidingWindowAttention": {"scale": 0.25},
    "LogMel": {"hop": 4, "n_fft": 16, "eps": 0.5},
}
# inputs by name, and what they hold
DATA, SINGLE, LONG = "data", "float32", "int64"
INPUTS = {
    "CausalConv1d": {"x": DATA, "weight": SINGLE, "bias": SINGLE, "state": SINGLE},
    "SelectiveScan": {
        "x": DATA, "dt": DATA, "A": SINGLE, "B": DATA, "C": DATA, "D": SINGLE, "dt_bias": SINGLE, "z": DATA,
        "state": SINGLE,
    },
    "StateSpaceDual": {
        "x": DATA, "dt": DATA, "A": SINGLE, "B": DATA, "C": DATA, "D": SINGLE, "state": SINGLE,
    },
    "SlidingWindowAttention": {
        "q": DATA, "k": DATA, "v": DATA, "inv_freq": SINGLE, "key": SINGLE, "value": SINGLE, "position": LONG,
    },
    "LogMel": {"x": DATA, "window": SINGLE, "filters": SINGLE, "past": SINGLE},
}  # fmt: skip
STATES = {
    "CausalConv1d": ("state",),
    "SelectiveScan": ("state",),
    "StateSpaceDual": ("state",),
    "SlidingWindowAttention": ("key", "value", "position"),
    "LogMel": ("past",),
}


class Field(NamedTuple):
    """An attribute as TensorRT gives it."""

    name: str
    type: int
    value: int | float
    length: int = 1


class Tensor(ctypes.Structure):
    """A tensor of a call."""

    _fields_ = [("type", c_int32), ("rank", c_int32), ("dims", c_int64 * 8), ("data", c_void_p)]

    def __init__(self, kind: int = FLOAT32, shape: tuple[int, ...] = (), data: int | None = None):
        super().__init__(kind, len(shape), (c_int64 * 8)(*shape), data)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.dims[: self.rank])


def fields_of(name: str, **changed: int | float) -> list[Field]:
    """The attributes that the operator needs, as the ONNX parser hands them over."""
    values = {**ATTRIBUTES[name], **changed}
    return [Field(k, FIELD_FLOAT32 if isinstance(v, float) else FIELD_INT32, v) for k, v in values.items()]


class Harness:
    """The loaded harness; pointers are plain integers."""

    def __init__(self, path: str):
        self._library = ctypes.CDLL(path)
        for name in ("registry", "load", "find", "open", "creator", "create", "remake", "clone", "attach",
                     "attach_recorded"):  # fmt: skip
            self._function(name).restype = c_void_p
        for name in ("log", "all", "attributes", "identity", "recorded"):
            self._function(name).restype = c_char_p

    def _function(self, name: str) -> Any:
        return getattr(self._library, f"harness_{name}")

    def _text(self, name: str, *arguments: object) -> str:
        return (self._function(name)(*arguments) or b"").decode()

    def log(self) -> str:
        return self._text("log")

    # -- registry
    def registry(self, library: str) -> tuple[int, tuple[int, int]]:
        version = (c_int32 * 2)()
        found = self._function("registry")(library.encode(), version)
        assert found, self.log()
        return found, (version[0], version[1])

    def load(self, registry: int, plugins: str) -> int | None:
        return self._function("load")(c_void_p(registry), plugins.encode())

    def unload(self, registry: int, handle: int) -> None:
        self._function("unload")(c_void_p(registry), c_void_p(handle))

    def find(self, registry: int, name: str, version: str = "1", space: str = "streamssm") -> int | None:
        return self._function("find")(c_void_p(registry), name.encode(), version.encode(), space.encode())

    def all(self, registry: int) -> list[str]:
        return self._text("all", c_void_p(registry)).splitlines()

    # -- no registry
    def open(self, plugins: str) -> int:
        loaded = self._function("open")(plugins.encode())
        assert loaded, self.log()
        return loaded

    def creator(self, loaded: int, name: str) -> int:
        return self._function("creator")(c_void_p(loaded), name.encode())

    # -- plugins
    def attributes(self, creator: int) -> str:
        return self._text("attributes", c_void_p(creator))

    def create(
        self, creator: int, fields: list[Field], phase: int = BUILD, layer: str = "layer"
    ) -> int | None:
        kinds = {FIELD_FLOAT32: ctypes.c_float, FIELD_FLOAT64: ctypes.c_double, FIELD_INT64: c_int64}
        values = [kinds.get(f.type, c_int32)(f.value) for f in fields]
        count = len(fields)
        return self._function("create")(
            c_void_p(creator), layer.encode(), count,
            (c_char_p * count)(*(f.name.encode() for f in fields)),
            (c_int32 * count)(*(f.type for f in fields)),
            (c_void_p * count)(*(ctypes.addressof(v) for v in values)),
            (c_int32 * count)(*(f.length for f in fields)), phase,
        )  # fmt: skip

    def remake(self, creator: int, plugin: int) -> int | None:
        return self._function("remake")(c_void_p(creator), c_void_p(plugin))

    def clone(self, plugin: int) -> int:
        return self._function("clone")(c_void_p(plugin))

    def attach(self, plugin: int) -> int:
        return self._function("attach")(c_void_p(plugin))

    def attach_recorded(self, plugin: int) -> int:
        return self._function("attach_recorded")(c_void_p(plugin))

    def recorded(self) -> str:
        return self._text("recorded")

    def recorder_references(self) -> int:
        return self._function("recorder_references")()

    def destroy(self, plugin: int) -> None:
        self._function("destroy")(c_void_p(plugin))

    def identity(self, plugin: int) -> str:
        return self._text("identity", c_void_p(plugin))

    # -- building
    def supports(self, plugin: int, types: list[int], inputs: int, formats: list[int] | None = None) -> bool:
        """Whether the plugin takes every tensor, asked one after the other as TensorRT does."""
        count = len(types)
        types_array, formats_array = (
            (c_int32 * count)(*types),
            (c_int32 * count)(*(formats or [LINEAR] * count)),
        )
        ask = self._function("supports")
        return all(
            ask(c_void_p(plugin), at, types_array, formats_array, inputs, count - inputs)
            for at in range(count)
        )

    def types(self, plugin: int, inputs: list[int], outputs: int) -> list[int] | None:
        made = (c_int32 * outputs)()
        status = self._function("types")(
            c_void_p(plugin), (c_int32 * len(inputs))(*inputs), len(inputs), made, outputs
        )
        return None if status else list(made)

    def shapes(
        self, plugin: int, inputs: list[tuple[int, ...]], outputs: int
    ) -> list[tuple[int, ...]] | None:
        made = (Tensor * outputs)()
        given = (Tensor * len(inputs))(*(Tensor(FLOAT32, shape) for shape in inputs))
        status = self._function("shapes")(c_void_p(plugin), given, len(inputs), made, outputs)
        return None if status else [tensor.shape for tensor in made]

    # -- running; each answers whether it succeeded
    def _call(
        self, name: str, plugin: int, inputs: list[Tensor], outputs: list[Tensor], *rest: object
    ) -> bool:
        given, made = (Tensor * len(inputs))(*inputs), (Tensor * len(outputs))(*outputs)
        return not self._function(name)(c_void_p(plugin), given, len(inputs), made, len(outputs), *rest)

    def configure(
        self, plugin: int, inputs: list[Tensor], outputs: list[Tensor], bounds: int = SAME_BOUNDS
    ) -> bool:
        return self._call("configure", plugin, inputs, outputs, bounds)

    def shape_change(self, plugin: int, inputs: list[Tensor], outputs: list[Tensor]) -> bool:
        return self._call("shape_change", plugin, inputs, outputs)

    def enqueue(
        self, plugin: int, inputs: list[Tensor], outputs: list[Tensor], stream: int = 0, times: int = 1
    ) -> bool:
        return self._call("enqueue", plugin, inputs, outputs, c_void_p(stream), times)


class Fake:
    """The library of fake_cuda.cpp beside the plugins: what they asked of the GPU."""

    def __init__(self, path: str):
        self._library = ctypes.CDLL(path)
        self._library.fake_asked.restype = c_char_p

    def asked(self) -> list[str]:
        return self._library.fake_asked().decode().splitlines()

    def fail(self) -> None:
        """Let the next launch fail."""
        self._library.fake_fail()
