"""The microphone, with a sounddevice of our own that records what the test says."""

import json
import queue
import re
import sys
import threading
import types

import numpy as np
import pytest
from live_tools import ROWS, SOUND, reading

from streamssm.errors import SourceError, UsageError
from streamssm.live import connection
from streamssm.live.queue import Queue
from streamssm.manifest import Input
from streamssm.sources import Request, microphone, open_source
from streamssm.sources.base import Gap

DEVICES = [
    {"name": "Speakers", "index": 0, "max_input_channels": 0, "default_samplerate": 48000.0},
    {"name": "Built-in", "index": 1, "max_input_channels": 2, "default_samplerate": 48000.0},
    {"name": "USB headset", "index": 2, "max_input_channels": 1, "default_samplerate": 16000.0},
]


class FakeSound(types.ModuleType):
    """sounddevice, as far as it is used. ``script`` holds calls of the callback: samples, the driver's
    time of the first, and whether samples were lost before; None stops the device."""

    class PortAudioError(Exception):
        pass

    def __init__(self, rates=(8000.0,)):
        super().__init__("sounddevice")
        self.rates, self.script, self.opened, self.restarts = rates, queue.Queue(), [], 0
        self.devices = DEVICES
        self.callback_thread = None
        fake = self

        class InputStream:
            def __init__(self, callback, finished_callback, **settings):
                if not fake.devices:
                    raise fake.PortAudioError("no such device")
                fake.opened.append(settings)
                self._callback, self._finished, self._open = callback, finished_callback, True

            def __enter__(self):
                self._thread = threading.Thread(target=self._play, daemon=True)
                self._thread.start()
                return self

            def __exit__(self, *error):
                self._open = False
                self._thread.join(5)

            def _play(self):
                while self._open:
                    try:
                        step = fake.script.get(timeout=0.01)
                    except queue.Empty:
                        continue
                    if step is None:
                        return self._finished()
                    samples, moment, overflow = step
                    times = types.SimpleNamespace(inputBufferAdcTime=moment)
                    flags = types.SimpleNamespace(input_overflow=overflow)
                    self._callback(samples, len(samples), times, flags)
                    samples[:] = np.nan  # the driver uses its buffer again
                return None

        self.InputStream = InputStream

    def query_devices(self, device=None, kind=None):
        if kind is None:
            return self.devices
        able = [one for one in self.devices if one["max_input_channels"]]
        if isinstance(device, str):
            able = [one for one in able if device.lower() in one["name"].lower()]
        elif device is not None:
            able = [one for one in able if one["index"] == device]
        if not able:
            raise ValueError(f"No input device matching {device!r}")
        return able[0]

    def check_input_settings(self, device, channels, dtype, samplerate):
        if samplerate not in self.rates:
            raise self.PortAudioError("Invalid sample rate")

    def _terminate(self):
        self.restarts += 1

    def _initialize(self):
        pass

    def play(self, samples, moment, overflow=False):
        self.script.put((np.array(samples, np.float32).reshape(len(samples), -1), moment, overflow))


@pytest.fixture
def sound(monkeypatch):
    def install(**options) -> FakeSound:
        made = FakeSound(**options)
        monkeypatch.setitem(sys.modules, "sounddevice", made)
        return made

    monkeypatch.setattr(connection, "FIRST_WAIT", 0.02)
    monkeypatch.setattr(microphone, "_TICK", 0.02)
    return install


def test_samples_are_copied_as_they_come(sound):
    fake = sound()
    x = np.arange(800, dtype=np.float32)
    for start in range(0, 800, 80):
        fake.play(x[start : start + 80], start / 8000)
    with reading("mic", SOUND) as read:
        read.wait(800)
    assert read.items == x.tolist()
    assert read.gaps == []
    assert fake.opened[0]["samplerate"] == 8000
    assert fake.opened[0]["channels"] == 1
    assert read.source.notes == ["mic: Built-in, 8000 Hz"]


def test_a_device_that_cannot_do_the_rate_is_resampled(sound):
    pytest.importorskip("soxr")
    fake = sound(rates=(48000.0,))
    with reading("mic", SOUND) as read:
        for start in range(0, 48000, 480):
            fake.play(np.zeros(480), start / 48000)
        read.wait(6500)  # the rest is in the filter
    assert any("48000 Hz is converted to the model's 8000 Hz" in note for note in read.source.notes)


def test_what_the_device_lost_is_a_gap_of_the_clocks_length(sound):
    fake = sound()
    for moment, overflow in ((0.0, False), (0.0101, False), (0.1201, True), (0.1302, True), (0.1402, False)):
        fake.play(np.ones(80), moment, overflow)
    fake.play(np.ones(80), 3.0)  # nothing said so, but the machine slept
    with reading("mic", SOUND) as read:
        read.wait(480)
    assert read.gaps == [
        (160, Gap("device", 800, 0.1)),
        (240, Gap("device")),
        (400, Gap("device", 22798, 2.8498)),
    ]


def test_a_slow_reader_never_holds_up_the_driver(sound):
    fake = sound()
    gate = threading.Event()
    gate.set()
    with reading("mic", SOUND, gate, queue=Queue(items=400, policy="block")) as read:
        fake.play(np.zeros(80), 0.0)
        read.wait(80)
        gate.clear()
        for start in range(1, 101):
            fake.play(np.full(80, start), start / 100)
        read.until(fake.script.empty)
        gate.set()
        read.until(lambda: bool(read.items) and read.items[-1] == 100)
    dropped = sum(gap.items for _, gap in read.gaps)
    assert {gap.reason for _, gap in read.gaps} == {"dropped"}
    assert dropped + len(read.items) == 101 * 80


def test_a_device_that_is_unplugged_and_comes_back(sound):
    fake = sound()
    with reading("mic:usb", SOUND) as read:
        fake.play(np.zeros(80), 0.0)
        read.wait(80)
        fake.devices = []
        fake.script.put(None)
        read.until(lambda: fake.restarts > 1)
        fake.devices = DEVICES
        fake.play(np.ones(80), 7.0)
        read.wait(160)
    ((place, gap),) = read.gaps
    assert (place, gap.reason, gap.items) == (80, "disconnected", None)
    assert fake.opened[-1]["device"] == 2


def test_a_device_that_falls_silent(sound, monkeypatch):
    fake = sound()
    monkeypatch.setattr(microphone, "_SILENT", 0.1)
    with reading("mic", SOUND, reconnect=0) as read:
        fake.play(np.zeros(80), 0.0)
        read.wait_end()
    assert len(read.items) == 80
    assert "was lost: no samples for 0.1 s" in str(read.error)


@pytest.mark.parametrize(
    ("uri", "wanted", "options", "error", "message"),
    [
        ("mic:nothing", SOUND, {}, SourceError, "no microphone 'nothing'.*see 'streamssm devices'"),
        ("mic:7", SOUND, {}, SourceError, "no microphone '7'"),
        ("mic:2", SOUND, {"channels": 2, "channel": 1}, SourceError, "has 1 channels, 2 are wanted"),
        ("mic", SOUND, {"rate": 44100.0}, SourceError, "does not record 1 channels at 44100 Hz"),
        ("mic", ROWS, {}, UsageError, "feeds models of samples"),
        ("mic", Input("ids", "tokens", "int64", (), vocabulary=5), {}, SourceError, "cannot feed a model"),
    ],
)
def test_refusals(sound, uri, wanted, options, error, message):
    sound()
    with pytest.raises(error, match=message):
        open_source(uri, Request(wanted, **options))


def test_a_channel_is_picked(sound):
    fake = sound()
    fake.play([[1, 2], [3, 4]], 0.0)
    with reading("mic", SOUND, channel=2) as read:
        read.wait(2)
    assert read.items == [2, 4]


def test_without_the_libraries(monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(SourceError, match=r"pip install 'streamssm\[live\]'"):
        open_source("mic", Request(SOUND))

    class NoPortAudio:
        def find_spec(self, name, path, target=None):
            if name == "sounddevice":
                raise OSError("PortAudio library not found")

    monkeypatch.delitem(sys.modules, "sounddevice")
    monkeypatch.setattr(sys, "meta_path", [NoPortAudio(), *sys.meta_path])
    with pytest.raises(SourceError, match="apt-get install libportaudio2"):
        open_source("mic", Request(SOUND))


def test_devices(sound, call):
    sound()
    text = call("devices").stdout
    assert "1           Built-in     2         48000  default" in text
    assert "Speakers" not in text
    assert re.search(r"^cpu +onnxruntime", text, re.MULTILINE)
    found = json.loads(call("devices", "--json").stdout)
    assert [one["number"] for one in found["microphones"]] == [1, 2]
    assert found["backends"][0]["name"] == "cpu"


def test_devices_without_a_library_are_no_failure(call, monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    result = call("devices")
    assert result.exit_code == 0
    assert "no microphones: a microphone needs sounddevice" in result.stdout
