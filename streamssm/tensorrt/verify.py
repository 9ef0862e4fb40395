"""The parity check: an engine has to give its golden vectors back on the device that it will run on.

Fusion and code generation happen for one GPU and one version, and faults in them are known on real
targets; no test elsewhere finds them. So whoever opens an engine for the first time on a device runs the
sample that travels with it, in every block the engine has, alone and in a batch, state carried on and,
from the third step on, by CUDA graphs. What passed is remembered in the user's cache: for this engine, kind
of GPU, version and library of plugins, with or without graphs.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt

from streamssm import golden
from streamssm.errors import BackendError
from streamssm.tensorrt.folder import file_digest
from streamssm.tensorrt.local import device_name
from streamssm.tolerance import error

if TYPE_CHECKING:
    from streamssm.backends.tensorrt import TensorRTBackend
    from streamssm.tensorrt.folder import EngineFolder

Array = npt.NDArray[Any]

#: ``always`` checks at every load, ``first`` (the default) once for an engine, a GPU and a version
PARITY = "STREAMSSM_PARITY"

#: The largest difference over the largest magnitude that passes. The sample was computed in float32 on a
#: processor: what is allowed is what other orders of summation and weights rounded to 16 bits do to a deep
#: model, not what a wrong engine does, which is wrong by as much as the output itself.
BOUNDS = {"fp32": 1e-3, "fp16": 5e-2, "bf16": 2e-1}
#: rows of a batch that are looked at, if the engine takes so many
_ROWS = 8
#: and this absolutely, for outputs that are all close to zero
_ABSOLUTE = 1e-5


class Parity(msgspec.Struct, frozen=True):
    """How far one output was from the sample: absolute, and relative to its largest magnitude."""

    block: int
    rows: int
    output: str
    items: int
    max_abs: float
    max_rel: float


@dataclass(frozen=True)
class _Sample:
    x: Array
    y: dict[str, Array]


def check_parity(backend: TensorRTBackend) -> Sequence[Parity]:
    """Compare, unless this engine has passed on this GPU and version before.

    Raises:
        BackendError: it differs by more than :data:`BOUNDS`; has the numbers.
        ModelFileError: the sample cannot be read.
    """
    folder = backend.folder
    if folder.golden is None:
        logging.getLogger("streamssm").warning(
            "%s has no golden vectors: nothing says that it computes the model on this device", folder.path
        )
        return ()
    place = _place(backend)
    known = _remembered(place)
    if known is not None:
        return known
    found = tuple(compare(backend))
    _judge(folder, found)
    _remember(place, found)
    return found


def compare(backend: TensorRTBackend) -> Iterator[Parity]:
    """Run the sample in every block, alone and as one row of a batch, from a fresh state."""
    folder = backend.folder
    assert folder.golden is not None
    sample = _Sample(*golden.decode(folder.golden, folder.manifest))
    for profile in folder.record.profiles:
        for rows in sorted({profile.batch[0], max(profile.batch[0], min(profile.batch[2], _ROWS))}):
            outputs = _run(backend, sample.x, profile.block, rows)
            for name, wanted in sample.y.items():
                worst = error(golden.sampled_columns(outputs[name][: len(wanted)]), wanted)
                yield Parity(profile.block, rows, name, len(sample.x), *worst)


def _run(backend: TensorRTBackend, x: Array, block: int, rows: int) -> dict[str, Array]:
    """Outputs ``[F, *shape]`` of blocks that cover ``x``, zeros after it, in the last of so many rows; the
    others are given something else, so that a mixture of rows shows."""
    lane = backend.lane(block, rows)
    parts: list[tuple[Array, ...]] = []
    for start in range(0, len(x), block):
        piece = x[start : start + block]
        lane.x[:, : len(piece)] = piece[::-1]
        lane.x[-1, : len(piece)] = piece
        lane.x[:, len(piece) :] = 0
        lane.step()
        parts.append(tuple(y[-1].copy() for y in lane.y))
    names = [output.name for output in backend.manifest.outputs]
    return {
        name: np.concatenate(column) for name, column in zip(names, zip(*parts, strict=True), strict=True)
    }


def _judge(folder: EngineFolder, found: Sequence[Parity]) -> None:
    record = folder.record
    bound = max(BOUNDS[record.precision], 4 * folder.manifest.rounding)
    wrong = [one for one in found if not (one.max_rel <= bound or one.max_abs <= _ABSOLUTE)]
    if not wrong:
        return
    worst = max(wrong, key=lambda one: np.nan_to_num(one.max_rel, nan=np.inf))
    raise BackendError(
        f"{folder.path} is wrong on this device: in blocks of {worst.block}, {worst.output} differs by "
        f"{worst.max_abs:.2g} from the golden vectors, {worst.max_rel:.2g} of their largest value, and "
        f"{bound:.2g} is allowed ({len(wrong)} of {len(found)} comparisons failed, {worst.items} items); "
        f"build it again: {record.command(target='local', precision='fp32')}, or run the model itself on "
        "another backend"
    )


# What has passed.


def _place(backend: TensorRTBackend) -> Path:
    """The file that remembers this engine on this GPU and version, and all else that it runs with."""
    record = backend.folder.record
    parts = [backend.title, str(record.sm), record.precision, *sorted(file.sha256 for file in record.engines)]
    parts.append(hashlib.sha256(backend.folder.golden or b"").hexdigest())
    parts += [device_name(), "graphs" if backend.graphs else "no graphs"]
    if backend.plugins is not None:
        parts.append(file_digest(backend.plugins.path))
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "streamssm" / "parity" / f"{hashlib.sha256(' '.join(parts).encode()).hexdigest()[:32]}.json"


def _remembered(place: Path) -> tuple[Parity, ...] | None:
    if os.environ.get(PARITY, "first") == "always":
        return None
    try:
        return msgspec.json.decode(place.read_bytes(), type=tuple[Parity, ...])
    except (OSError, msgspec.MsgspecError):
        return None


def _remember(place: Path, found: Sequence[Parity]) -> None:
    """Write it down; where nothing can be written, the check runs each time."""
    from streamssm.atomic import write_bytes
    from streamssm.errors import OutputError

    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(place, msgspec.json.encode(found))
    except (OSError, OutputError):
        return
