"""The samples that a model gives, as a sound file.

Source: IBM and Microsoft, Multimedia Programming Interface and Data Specifications 1.0, and Microsoft, New
Multimedia Data Types and Data Techniques (RIFF WAVE; format 1 is PCM, 3 IEEE float).
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO, ClassVar

import numpy as np
import numpy.typing as npt

from streamssm import clock
from streamssm.errors import UsageError
from streamssm.manifest import Manifest
from streamssm.rows.audio import samples_output
from streamssm.rows.base import Row, Rows
from streamssm.sinks.base import Format

_UNKNOWN = 0xFFFFFFFF  # what a header says while it is written, and of more than 4 GiB; readers go to the end


class Wav(Format):
    """float32 frames, bit for bit what the model gave. Gaps are left out.

    Until :meth:`finish` the header says that the length is unknown, as a pipe's stays.

    Raises:
        UsageError: the rows are no samples, or come at a rate that is no whole number.
    """

    name = "wav"
    binary = True
    _format: ClassVar[int] = 3
    _type: ClassVar[str] = "<f4"

    def __init__(self, manifest: Manifest, rows: Rows):
        output = samples_output(manifest)
        if rows.kind != "audio" or output is None:
            remedy = f"{manifest.name} gives none" if output is None else "pass --emit audio"
            raise UsageError(f"{self.name} holds samples, not {rows.kind}; {remedy}")
        rate = clock.input_rate(manifest)
        rate = None if rate is None else rate * output.per_item
        if rate is None or rate.denominator != 1:
            raise UsageError(f"{manifest.name} gives {rate or 'samples without a'} rate, a wav has whole Hz")
        self._rate, self._channels = int(rate), math.prod(output.shape)
        self._record: str | None = None

    def begin(self) -> bytes:
        """The header."""
        self._record = None
        return self._header(_UNKNOWN)

    def rows(self, rows: Sequence[Row]) -> bytes:
        """The frames.

        Raises:
            UsageError: they are of a second record.
        """
        frames = [row for row in rows if "gap" not in row]
        for row in frames:
            self._check(row.get("record"))
        return b"".join([self._encoded(row["samples"]) for row in frames])

    def state(self) -> dict[str, Any]:
        """The record."""
        return super().state() | {"record": self._record}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue the record.

        Raises:
            SnapshotError: the state is of another format.
        """
        super().restore(state)
        self._record = state.get("record")

    def finish(self, file: BinaryIO) -> None:
        """Put the sizes in."""
        size = file.seek(0, os.SEEK_END) - len(self._header(0))
        file.seek(0)
        file.write(self._header(size))
        file.seek(0, os.SEEK_END)

    def _check(self, record: str | None) -> None:
        if record is None:
            return
        if self._record not in (None, record):
            raise UsageError(
                f"a {self.name} holds one recording, {self._record}; {record} is another: run one at a time"
            )
        self._record = record

    def _encoded(self, samples: npt.NDArray[np.float32]) -> bytes:
        return samples.astype(self._type).tobytes()

    def _header(self, size: int) -> bytes:
        """The first bytes of a file with ``size`` bytes of frames."""
        width = np.dtype(self._type).itemsize * self._channels
        fields = (
            self._format,
            self._channels,
            self._rate,
            self._rate * width,
            width,
            width * 8 // self._channels,
        )
        known = 50 + size < _UNKNOWN
        frames = size // width if known else _UNKNOWN
        return b"".join(
            [
                struct.pack("<4sI4s", b"RIFF", 50 + size if known else _UNKNOWN, b"WAVE"),
                struct.pack("<4sIHHIIHHH", b"fmt ", 18, *fields, 0),
                struct.pack("<4sII", b"fact", 4, frames),
                struct.pack("<4sI", b"data", size if known else _UNKNOWN),
            ]
        )


class Wav16(Wav):
    """16-bit frames: rounded, and what is louder than full scale is clipped; NaN is silence."""

    name = "wav16"
    _format = 1
    _type = "<i2"

    def _encoded(self, samples: npt.NDArray[np.float32]) -> bytes:
        scaled = np.rint(np.nan_to_num(samples.astype(np.float64), posinf=2, neginf=-2) * 32768)
        return np.clip(scaled, -32768, 32767).astype(self._type).tobytes()
