"""``mic`` and ``mic:DEVICE``: the samples of a microphone, through PortAudio.

The callback of the audio driver only copies samples into the inbox, and never waits: a reader that falls
behind under ``block`` loses the oldest. What the device itself lost is a gap; how much it was is told by
the driver's clock. A device that vanishes is opened again like any other connection.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from importlib import import_module
from threading import Event
from typing import Any

from streamssm.errors import SourceError, UsageError
from streamssm.live.connection import Connection, LostError
from streamssm.live.inbox import Inbox
from streamssm.live.opening import make_inbox
from streamssm.live.source import LiveSource
from streamssm.sources.base import DEVICE, Array, Gap, Request, Source, check_floats
from streamssm.sources.convert import Converter

_BLOCK = 0.01  # seconds in a callback
_TICK = 0.25  # seconds between looks at whether the device is still there
_SILENT = 5.0  # seconds without a callback after which it is not
_JUMP = 0.5  # seconds that the driver's clock may run ahead without a flag, before it is a gap


@dataclass(frozen=True)
class Format:
    """What is recorded: a device by its number (None: the default one), Hz, and channels."""

    device: int | None
    name: str
    rate: float
    channels: int


class Microphone(Connection):
    """Records from one device."""

    def __init__(self, name: str, device: str, recorded: Format, inbox: Inbox, reconnect: int | None):
        super().__init__(name, inbox, reconnect)
        self._device, self._format = device, recorded
        self._library = load_library(name)
        self._finished = Event()
        self._expected: float | None = None  # the driver's time of the next sample
        self._heard = 0.0  # when the latest callback was
        self._fresh = True

    def session(self) -> None:
        """Record until the device stops or :meth:`hang_up`."""
        self._finished.clear()
        self._expected, self._heard = None, time.monotonic()
        try:
            if not self._fresh:
                self._look_again()
            self._fresh = True
            with self._opened():
                self._watch()
        except self._library.PortAudioError as error:
            raise LostError(str(error)) from error
        finally:
            self._fresh = False

    def hang_up(self) -> None:
        """End the wait for the device."""
        self._finished.set()

    def _opened(self) -> Any:
        recorded = self._format
        return self._library.InputStream(
            device=recorded.device,
            samplerate=recorded.rate,
            channels=recorded.channels,
            dtype="float32",
            blocksize=round(recorded.rate * _BLOCK),
            latency="high",
            callback=self._callback,
            finished_callback=self._finished.set,
        )

    def _watch(self) -> None:
        while not self.stopping.is_set():
            if self._finished.wait(_TICK):
                break
            if time.monotonic() - self._heard > _SILENT:
                raise LostError(f"no samples for {_SILENT:g} s")
        if not self.stopping.is_set():
            raise LostError("the device stopped")

    def _look_again(self) -> None:
        """PortAudio looks at what devices there are only when it starts; numbers may have changed."""
        self._library._terminate()
        self._library._initialize()
        try:
            number = find(self._library, self.name, self._device)[0]
        except SourceError as error:
            raise LostError(str(error)) from error
        self._format = Format(number, self._format.name, self._format.rate, self._format.channels)

    def _callback(self, samples: Array, frames: int, moment: Any, status: Any) -> None:
        """In the driver's thread: nothing here waits or computes."""
        now = time.perf_counter()
        self._heard = time.monotonic()
        if self._fresh:
            self._fresh = False
            self.connected()
            self.alive()
        gap = self._missing(frames, moment.inputBufferAdcTime, bool(status.input_overflow))
        if gap is not None:
            self.inbox.lost(gap)
        self.inbox.put(samples, now, wait=False)

    def _missing(self, frames: int, moment: float, overflow: bool) -> Gap | None:
        """What the device lost before these frames; less than half a block is the clock's own noise."""
        rate, expected = self._format.rate, self._expected
        self._expected = moment + frames / rate
        late = 0.0 if expected is None else moment - expected
        if not overflow and late < _JUMP:
            return None
        if late < _BLOCK / 2:
            return Gap(DEVICE)
        return Gap(DEVICE, round(late * rate), round(late, 6))


def open_microphone(uri: str, request: Request) -> Source:
    """The source ``mic`` or ``mic:DEVICE``, a number or a part of the name.

    Raises:
        SourceError: there is no such microphone, it does not fit the model, or PortAudio is missing.
        UsageError: the model takes no samples.
    """
    device = uri.partition(":")[2]
    name = f"mic:{device}" if device else "mic"
    recorded = choose_format(name, device, request)
    converter = Converter(name, recorded.rate, recorded.channels, request)
    inbox = make_inbox(request, recorded.channels, recorded.rate)
    microphone = Microphone(name, device, recorded, inbox, request.reconnect)
    source = LiveSource(name, inbox, microphone, converter)
    source.notes = [f"{name}: {recorded.name}, {recorded.rate:g} Hz", *converter.notes]
    return source


def choose_format(name: str, device: str, request: Request) -> Format:
    """What to record for a model: at its own rate if the device can, else at the device's.

    Raises:
        SourceError: there is no such microphone, it has too few channels, or PortAudio is missing.
        UsageError: the model has no rate.
    """
    check_floats(name, "a microphone", request)
    if request.input.rate is None or request.input.kind != "samples":
        raise UsageError(f"{name}: a microphone feeds models of samples, this one takes {request.input.kind}")
    library = load_library(name)
    number, info = find(library, name, device)
    channels = request.channels or max(request.columns, request.channel or 1)
    if channels > info["max_input_channels"]:
        raise SourceError(
            f"{name}: {info['name']!r} has {info['max_input_channels']} channels, {channels} are wanted; "
            "see 'streamssm devices'"
        )
    rates = [request.rate] if request.rate is not None else [request.input.rate, info["default_samplerate"]]
    for rate in rates:
        try:
            library.check_input_settings(device=number, channels=channels, dtype="float32", samplerate=rate)
        except library.PortAudioError as error:
            failure = error
        else:
            return Format(number, info["name"], float(rate), channels)
    raise SourceError(
        f"{name}: {info['name']!r} does not record {channels} channels at {rates[-1]:g} Hz: {failure}; "
        "choose others with --rate and --channels"
    ) from failure


def find(library: Any, name: str, device: str) -> tuple[int | None, Any]:
    """A device by its number or a part of its name, "" for the default one.

    Raises:
        SourceError: there is none, or several.
    """
    wanted: Any = int(device) if device.isdigit() else device or None
    try:
        info = library.query_devices(wanted, "input")
    except (ValueError, library.PortAudioError) as error:
        what = f"no microphone {device!r}" if device else "no microphone"
        raise SourceError(f"{name}: {what}: {error}; see 'streamssm devices'") from error
    return (None if wanted is None else int(info["index"])), info


def load_library(name: str) -> Any:
    """sounddevice.

    Raises:
        SourceError: it or PortAudio is missing.
    """
    try:
        return import_module("sounddevice")
    except ImportError as error:
        raise SourceError(f"{name} needs sounddevice; pip install 'streamssm[live]'") from error
    except OSError as error:  # the wheel for Linux brings no PortAudio
        raise SourceError(
            f"{name} needs PortAudio; on Debian and Ubuntu: apt-get install libportaudio2; else portaudio"
        ) from error
