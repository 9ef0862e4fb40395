"""libstreamssm for the tests: built once, and called through ctypes."""

from __future__ import annotations

import ctypes as c
import fcntl
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

ROOT = Path(__file__).parents[2]
FUSED, UNFUSED, PLAIN = 0, 1, 2
OK, ROOM = 0, 4


class Options(c.Structure):
    _fields_ = (("size", c.c_size_t), ("runtime", c.c_char_p), ("kernels", c.c_int32))


class StreamOptions(c.Structure):
    _fields_ = (("size", c.c_size_t), ("block", c.c_int64), ("allow_nonfinite", c.c_int32))


class PoolOptions(c.Structure):
    _fields_ = (
        ("size", c.c_size_t),
        ("block", c.c_int64),
        ("limit", c.c_int64),
        ("allow_nonfinite", c.c_int32),
    )


class Output(c.Structure):
    _fields_ = (
        ("name", c.c_char_p),
        ("kind", c.c_char_p),
        ("width", c.c_size_t),
        ("up", c.c_int64),
        ("down", c.c_int64),
        ("labels", c.POINTER(c.c_char_p)),
        ("label_count", c.c_size_t),
    )


class Info(c.Structure):
    _fields_ = (
        *((name, c.c_char_p) for name in ("name", "description", "license", "sha256", "input_kind")),
        ("type", c.c_int),
        ("width", c.c_size_t),
        ("rate", c.c_double),
        *((name, c.c_int64) for name in ("vocabulary", "hop", "block", "lookahead", "parameters")),
        ("state_bytes", c.c_size_t),
        ("outputs", c.POINTER(Output)),
        ("output_count", c.c_size_t),
        ("event_label", c.c_char_p),
        ("event_output", c.c_size_t),
        ("kernels", c.c_char_p),
        ("runtime", c.c_char_p),
    )


class Frames(c.Structure):
    _fields_ = (("data", c.c_void_p), ("room", c.c_size_t), ("count", c.c_size_t))


class Result(c.Structure):
    _fields_ = (("slot", c.c_size_t), ("ended", c.c_int32), ("outputs", c.POINTER(Frames)))


class EmbedError(Exception):
    """A status that is not ok."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


def build(folder: str, *settings: str, targets: tuple[str, ...] = ()) -> Path:
    """``build/FOLDER`` of this checkout, brought up to date; one process at a time.

    Raises:
        subprocess.CalledProcessError: CMake or the compiler refused.
    """
    out = ROOT / "build" / folder
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        base = ["cmake", "-S", ROOT, "-B", out, "-DSTREAMSSM_EMBED=ON", "-DSTREAMSSM_EMBED_TESTS=ON"]
        commands = [[*base, "-DSTREAMSSM_CUDA=OFF", *settings]]
        commands += [["cmake", "--build", out, "-j", str(os.cpu_count()), *_targets(targets)]]
        for command in commands:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    return out


def _targets(names: tuple[str, ...]) -> list[str]:
    return ["--target", *names] if names else []


def can_build() -> bool:
    """Whether there are CMake and a compiler."""
    compiler = any(map(shutil.which, ("c++", "g++", "clang++")))
    return bool(shutil.which("cmake") and shutil.which("cc") and compiler)


def onnxruntime_library() -> Path | None:
    """ONNX Runtime's own library in the installed wheel, the one that Python's sessions run on."""
    import onnxruntime

    found = sorted(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.1*"))
    return found[0] if found else None


class Library:
    """The functions, with their results' types."""

    def __init__(self, path: Path, runtime: Path) -> None:
        self.runtime = os.fsencode(runtime)
        self.c = c.CDLL(os.fspath(path))
        self.c.streamssm_message.restype = c.c_char_p
        self.c.streamssm_version.restype = c.c_char_p
        self.c.streamssm_model_info.restype = c.POINTER(Info)
        for name in ("position", "pending", "pool_waiting"):
            getattr(self.c, f"streamssm_{name}").restype = c.c_int64
        for name in ("frames_of_push", "frames_of_flush", "pool_ready"):
            getattr(self.c, f"streamssm_{name}").restype = c.c_size_t
        for name in ("close", "stream_close", "pool_close", "detector_close"):
            getattr(self.c, f"streamssm_{name}").restype = None

    def call(self, name: str, *arguments: object) -> None:
        """A function that returns a status.

        Raises:
            EmbedError: with what it says.
        """
        status = getattr(self.c, f"streamssm_{name}")(*arguments)
        if status != OK:
            raise EmbedError(status, self.c.streamssm_message().decode())

    def open(self, path: Path, kernels: int = FUSED, runtime: bytes | None = None) -> Model:
        """Open a model."""
        options = Options(c.sizeof(Options), runtime or self.runtime, kernels)
        handle = c.c_void_p()
        self.call("open", os.fsencode(path), c.byref(options), c.byref(handle))
        return Model(self, handle)


class Model:
    """An opened model."""

    def __init__(self, library: Library, handle: c.c_void_p) -> None:
        self.library, self.handle = library, handle
        self.info: Info = library.c.streamssm_model_info(handle).contents
        self.dtype = np.int64 if self.info.type else np.float32

    def __del__(self) -> None:
        self.library.c.streamssm_close(self.handle)

    def stream(self, block: int = 0) -> Stream:
        """A stream at item 0."""
        options, handle = StreamOptions(c.sizeof(StreamOptions), block, 0), c.c_void_p()
        self.library.call("stream_open", self.handle, c.byref(options), c.byref(handle))
        return Stream(self, handle)

    def resume(self, snapshot: bytes) -> Stream:
        """A stream where a snapshot left off."""
        handle = c.c_void_p()
        self.library.call("resume", self.handle, snapshot, c.c_size_t(len(snapshot)), None, c.byref(handle))
        return Stream(self, handle)

    def items(self, x: Array) -> tuple[Array, int]:
        """Items as the library takes them, and how many."""
        return np.ascontiguousarray(x, self.dtype), len(x)

    def widths(self) -> list[int]:
        """Floats of a frame of each output."""
        return [self.info.outputs[i].width for i in range(self.info.output_count)]


class Stream:
    """One sequence; results are ``[frames, width]`` for each output."""

    def __init__(self, model: Model, handle: c.c_void_p) -> None:
        self.model, self.handle, self.library = model, handle, model.library

    def __del__(self) -> None:
        self.library.c.streamssm_stream_close(self.handle)

    def push(self, x: Array) -> list[Array]:
        """Give it items."""
        items, count = self.model.items(x)
        return self._collect("push", items.ctypes.data_as(c.c_void_p), c.c_size_t(count))

    def flush(self) -> list[Array]:
        """End it."""
        return self._collect("flush")

    def save(self) -> bytes:
        """It as a snapshot."""
        return saved(self.library, "save", self.handle)

    def restore(self, snapshot: bytes) -> None:
        """Go on from a snapshot."""
        self.library.call("restore", self.handle, snapshot, c.c_size_t(len(snapshot)))

    def fork(self) -> Stream:
        """A twin."""
        handle = c.c_void_p()
        self.library.call("fork", self.handle, c.byref(handle))
        return Stream(self.model, handle)

    @property
    def position(self) -> int:
        """Items accepted."""
        return int(self.library.c.streamssm_position(self.handle))

    def _collect(self, name: str, *arguments: Any) -> list[Array]:
        widths, given = self.model.widths(), arguments[1:]
        count = getattr(self.library.c, f"streamssm_frames_of_{name}")
        wanted = [count(self.handle, *given, c.c_size_t(i)) for i in range(len(widths))]
        results = [
            np.full((frames, width), np.nan, np.float32) for frames, width in zip(wanted, widths, strict=True)
        ]
        outputs = (Frames * len(widths))(*(Frames(y.ctypes.data, len(y), 0) for y in results))
        self.library.call(name, self.handle, *arguments, outputs)
        assert [frames.count for frames in outputs] == wanted
        return results


class Pool:
    """Many streams."""

    def __init__(self, model: Model, slots: int, block: int = 0, limit: int = 0) -> None:
        self.model, self.library, self.handle = model, model.library, c.c_void_p()
        options = PoolOptions(c.sizeof(PoolOptions), block, limit, 0)
        self.library.call(
            "pool_open", model.handle, c.c_size_t(slots), c.byref(options), c.byref(self.handle)
        )

    def __del__(self) -> None:
        self.library.c.streamssm_pool_close(self.handle)

    def join(self, snapshot: bytes | None = None) -> int:
        """Take a slot."""
        slot = c.c_size_t()
        if snapshot is None:
            self.library.call("pool_join", self.handle, c.byref(slot))
        else:
            self.library.call("pool_resume", self.handle, snapshot, c.c_size_t(len(snapshot)), c.byref(slot))
        return slot.value

    def push(self, slot: int, x: Array) -> None:
        """Give a stream items."""
        items, count = self.model.items(x)
        self.library.call(
            "pool_push", self.handle, c.c_size_t(slot), items.ctypes.data_as(c.c_void_p), c.c_size_t(count)
        )

    def flush(self, slot: int) -> None:
        """End a stream."""
        self.library.call("pool_flush", self.handle, c.c_size_t(slot))

    def step(self) -> list[tuple[int, bool, list[Array]]]:
        """Slot, whether it has ended, and its frames."""
        results, count = c.POINTER(Result)(), c.c_size_t()
        self.library.call("pool_step", self.handle, c.byref(results), c.byref(count))
        return [self._result(results[i]) for i in range(count.value)]

    def save(self, slot: int) -> bytes:
        """A stream as a snapshot."""
        return saved(self.library, "pool_save", self.handle, c.c_size_t(slot))

    def _result(self, result: Result) -> tuple[int, bool, list[Array]]:
        parts = []
        for i, width in enumerate(self.model.widths()):
            frames = result.outputs[i]
            floats = (c.c_float * (frames.count * width)).from_address(frames.data)
            parts.append(np.array(floats, np.float32).reshape(frames.count, width))
        return result.slot, bool(result.ended), parts


def saved(library: Library, name: str, *handles: object) -> bytes:
    """A snapshot, by asking for its size first."""
    size = c.c_size_t()
    assert getattr(library.c, f"streamssm_{name}")(*handles, None, c.c_size_t(0), c.byref(size)) == ROOM
    memory = c.create_string_buffer(size.value)
    library.call(name, *handles, memory, size, c.byref(size))
    return memory.raw
