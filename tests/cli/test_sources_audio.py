import builtins
import importlib
import io
import os
import sys
import threading
import types
from itertools import pairwise

import numpy as np
import pytest
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st
from source_tools import MONO, PAIR, ROWS, everything, give_stdin, notes_of, pieces, records

from streamssm.errors import SourceError, UsageError
from streamssm.manifest import Input
from streamssm.sources import Request, open_source
from streamssm.sources.arrival import WatchedSource
from streamssm.sources.convert import Converter, mean
from streamssm.sources.frames import FrameSource
from streamssm.sources.resample import Resampler
from streamssm.waiting import Interrupted, Stop

av = pytest.importorskip("av")
soundfile = pytest.importorskip("soundfile")

RATES = [(44100, 16000), (48000, 16000), (8000, 16000), (11025, 8000), (16000, 16000), (44100.5, 16000)]


def voice(seconds: float, rate: int, channels: int = 1) -> np.ndarray:
    """A few tones below 3 kHz that rise and fall, ``[n, channels]`` as float32."""
    t = np.arange(round(seconds * rate)) / rate
    tones = sum(np.sin(2 * np.pi * f * t + f) for f in (220, 700, 1900, 2900))
    sound = 0.2 * tones * (0.5 + 0.5 * np.sin(2 * np.pi * 3 * t))
    return np.stack([sound * (1 - 0.3 * c) for c in range(channels)], 1).astype(np.float32)


def resampled(resampler: Resampler, x: np.ndarray, cuts: list[int]) -> np.ndarray:
    edges = [0, *sorted(cut % (len(x) + 1) for cut in cuts), len(x)]
    parts = [resampler.push(x[a:b]) for a, b in pairwise(edges)]
    return np.concatenate([*parts, resampler.flush()])


@pytest.mark.parametrize(("rate_in", "rate_out"), RATES)
@given(cuts=st.lists(st.integers(0, 10_000), max_size=12), length=st.integers(0, 5000))
@settings(max_examples=15, deadline=None)
def test_any_split_resamples_to_the_same_bytes_and_the_stated_length(rate_in, rate_out, cuts, length):
    x = np.random.default_rng(length).standard_normal((length, 2)).astype(np.float32)
    resampler = Resampler(rate_in, rate_out, 2)
    whole = resampled(resampler, x, [])
    assert len(whole) == resampler.total(length) == int(np.floor(length * rate_out / rate_in + 0.5))
    assert resampled(resampler, x, cuts).tobytes() == whole.tobytes()  # the second sequence of one object


def test_resampling_is_that_of_one_call_and_has_no_delay():
    x = voice(1, 44100)
    ours = resampled(Resampler(44100, 16000, 1), x, [441 * n for n in range(100)])
    np.testing.assert_array_equal(ours, soxr.resample(x, 44100, 16000))
    middle = slice(500, -500)
    np.testing.assert_allclose(ours[middle], voice(1, 16000)[middle], atol=2e-3)


def test_a_gap_keeps_the_sum_of_frames():
    resampler = Resampler(44100, 16000, 1)
    x = voice(0.5, 44100)
    given_out = len(resampler.push(x[:10_001]))
    missing = 0
    for frames in (1, 777, 0, 44100):
        tail, gone = resampler.gap(frames)
        given_out, missing = given_out + len(tail), missing + gone
        given_out += len(resampler.push(x[:5003]))
    given_out += len(resampler.flush())
    taken = 10_001 + 4 * 5003
    assert given_out + missing == resampler.total(taken + 1 + 777 + 44100)
    assert abs(missing - (1 + 777 + 44100) * 16000 / 44100) < 4


def test_rates_that_cannot_be_right_are_refused(monkeypatch):
    with pytest.raises(SourceError, match="1 Hz cannot be converted to 16000 Hz"):
        Resampler(1, 16000, 1)
    with pytest.raises(SourceError, match="frames have shape"):
        Resampler(8000, 16000, 2).push(np.zeros((4, 3), np.float32))
    hide(monkeypatch, "soxr")
    with pytest.raises(
        SourceError, match=r"44100 Hz to 16000 Hz needs soxr; pip install 'streamssm\[audio\]'"
    ):
        Resampler(44100, 16000, 1)
    assert len(Resampler(16000, 16000, 1).push(np.zeros((3, 1), np.float32))) == 3


def hide(monkeypatch, *names: str) -> None:
    """Make libraries look as if they were not installed."""
    real, real_spec = builtins.__import__, importlib.util.find_spec

    def missing(name: str, *rest: object) -> object:
        if name.split(".")[0] in names:
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", lambda name: missing(name) or importlib.sys.modules[name])
    for module in ("resample", "audio", "container", "bam"):
        target = importlib.sys.modules.get(f"streamssm.sources.{module}")
        if target is not None:
            monkeypatch.setattr(target, "import_module", importlib.import_module)
    container = importlib.sys.modules["streamssm.sources.container"]
    monkeypatch.setattr(container, "find_spec", lambda name: None if name in names else real_spec(name))


@pytest.mark.parametrize("suffix", ["wav", "flac", "aiff"])
@pytest.mark.parametrize("count", [1, 80, 100_000])
def test_audio_of_another_rate_and_several_channels(tmp_path, suffix, count):
    x = voice(0.3, 44100, channels=2)
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, x, 44100, subtype="PCM_24")
    exact = soundfile.read(path, dtype="float32")[0]
    found = everything(path, MONO, count)
    np.testing.assert_array_equal(found, soxr.resample(mean(exact), 44100, 8000)[:, 0])
    assert "2 channels are mixed" in notes_of(path, MONO)
    assert "44100 Hz is converted to the model's 8000 Hz" in notes_of(path, MONO)
    picked = everything(path, MONO, count, channel=2)
    np.testing.assert_array_equal(picked, soxr.resample(exact[:, 1:], 44100, 8000)[:, 0])
    np.testing.assert_array_equal(everything(path, PAIR, count), soxr.resample(exact, 44100, 8000))


def test_a_pipe_of_samples_at_another_rate_is_the_file(tmp_path, monkeypatch):
    x = (voice(0.5, 44100, channels=2) * 30000).astype("<i2")
    soundfile.write(tmp_path / "a.wav", x, 44100, subtype="PCM_16")
    file = everything(tmp_path / "a.wav", MONO, 80)
    give_stdin(monkeypatch, x.tobytes())
    pipe = everything("-", MONO, 33, format="s16le", rate=44100.0, channels=2)
    assert pipe.tobytes() == file.tobytes()
    give_stdin(monkeypatch, (tmp_path / "a.wav").read_bytes())
    assert everything("-", MONO, 1000).tobytes() == file.tobytes()


def test_the_mean_does_not_depend_on_how_many_frames_it_is_of():
    x = np.random.default_rng(0).standard_normal((64, 19)).astype(np.float32)
    whole = mean(x)
    np.testing.assert_array_equal(np.concatenate([mean(x[i : i + 1]) for i in range(64)]), whole)
    np.testing.assert_allclose(whole[:, 0], x.mean(1), rtol=1e-5, atol=1e-6)


def test_features_are_neither_mixed_nor_resampled():
    with pytest.raises(SourceError, match="only audio is converted"):
        Converter("x", 100.0, 3, Request(ROWS))
    with pytest.raises(SourceError, match="0 Hz, which is no rate"):
        Converter("x", 0.0, 1, Request(MONO))
    with pytest.raises(UsageError, match="has 2 channels, --channels says 3"):
        Converter("x", 8000.0, 2, Request(MONO, channels=3))


@pytest.mark.parametrize("name", ["a.wav", "b.wav", "a.flac", "a.npy", "a.raw"])
@pytest.mark.parametrize("skipped", [0, 1, 1234, 7999, 8000])
def test_skipping_is_reading(tmp_path, name, skipped):
    x = voice(1, 44100 if name == "b.wav" else 8000)[:, 0]
    path = tmp_path / name
    if name == "a.npy":
        np.save(path, x)
    elif name == "a.raw":
        path.write_bytes(x.astype("<f4").tobytes())
    else:
        soundfile.write(path, x, 44100 if name == "b.wav" else 8000, subtype="PCM_16")
    options = {"format": "f32le"} if name == "a.raw" else {}
    whole = everything(path, MONO, 4000, **options)
    for first in (0, 3):
        with open_source(str(path), Request(MONO, **options)) as source:
            assert source.replayable
            if first:
                source.read(first)
            source.skip(min(skipped, len(whole) - first))
            rest = np.concatenate([part for part, _ in pieces(source, 1000)])
        np.testing.assert_array_equal(rest, whole[min(skipped, len(whole) - first) + first :])
    with (
        open_source(str(path), Request(MONO, **options)) as source,
        pytest.raises(SourceError, match="ends after"),
    ):
        source.skip(len(whole) + 1)


def test_a_truncated_recording(tmp_path, monkeypatch):
    x = (voice(0.1, 8000)[:, 0] * 30000).astype("<i2")
    path = tmp_path / "a.wav"
    soundfile.write(path, x, 8000, subtype="PCM_16")
    path.write_bytes(path.read_bytes()[:-31])
    with pytest.raises(
        SourceError, match=r"announces 1600 bytes of samples, 1569 are there.*--allow-truncated"
    ):
        everything(path, MONO)
    found = everything(path, MONO, allow_truncated=True)
    np.testing.assert_array_equal(found, x[:784].astype(np.float32) / 32768)
    assert "announces 1600 bytes of samples, 1569 are there; taken as it is" in notes_of(
        path, MONO, allow_truncated=True
    )
    data = path.read_bytes()
    give_stdin(monkeypatch, data)
    np.testing.assert_array_equal(everything("-", MONO, allow_truncated=True), found)
    soundfile.write(path, x, 44100, subtype="PCM_16")
    whole = everything(path, MONO, 1000)
    give_stdin(monkeypatch, path.read_bytes()[:-400])
    with open_source("-", Request(MONO)) as source:
        part = np.concatenate([items for items, _ in untruncated(source)])
    assert len(part) == round(600 * 8000 / 44100)  # all that was there, and then the error
    np.testing.assert_allclose(part[:80], whole[:80], atol=5e-3)


def untruncated(source):
    with pytest.raises(SourceError, match="announces 1600 bytes of samples, 1200 are there"):
        yield from pieces(source, 50)


def test_damaged_flac_gives_what_comes_before(tmp_path):
    path = tmp_path / "a.flac"
    soundfile.write(path, voice(2, 8000)[:, 0], 8000)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    found = []
    with (
        open_source(str(path), Request(MONO)) as source,
        pytest.raises(SourceError, match=r"damaged|truncated"),
    ):
        found.extend(items for items, _ in pieces(source, 100))
    assert sum(map(len, found)) > 4000 - 256


# containers


def write_container(path, x: np.ndarray, rate: int, codec: str, picture: bool = False, **options) -> None:
    with av.open(str(path), "w", **options) as file:
        video = file.add_stream("mpeg4", rate=10) if picture else None
        stream = file.add_stream(codec, rate=rate, layout="mono" if x.ndim == 1 else "stereo")
        if video is not None:
            video.width = video.height = 32
            for _ in range(3):
                frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), "rgb24")
                file.mux(video.encode(frame))
            file.mux(video.encode(None))
        layout = "mono" if x.ndim == 1 else "stereo"
        resampler = av.AudioResampler(stream.format, stream.layout, rate, stream.frame_size or 0)
        for start in range(0, len(x), 1000):
            packed = np.ascontiguousarray(x[start : start + 1000].reshape(1, -1))
            frame = av.AudioFrame.from_ndarray(packed, "s16", layout)
            frame.sample_rate, frame.pts = rate, start
            for ready in resampler.resample(frame):
                file.mux(stream.encode(ready))
        for ready in resampler.resample(None):
            file.mux(stream.encode(ready))
        file.mux(stream.encode(None))


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mka", "pcm_s16le", {}),
        ("a.mov", "pcm_s16le", {}),
        ("a.mkv", "pcm_s16le", {"picture": True}),
        ("a.avi", "pcm_s16le", {"picture": True}),
    ],
)
def test_containers_give_the_samples(tmp_path, name, codec, options):
    x = (voice(0.4, 8000, channels=2) * 30000).astype("<i2")
    write_container(tmp_path / name, x, 8000, codec, **options)
    found = everything(tmp_path / name, PAIR, 77)
    np.testing.assert_array_equal(found, x.astype(np.float32) / 32768)


def test_lossy_containers_and_bare_codecs(tmp_path):
    x = (voice(0.5, 16000)[:, 0] * 30000).astype("<i2")
    write_container(tmp_path / "a.m4a", x, 16000, "aac")
    write_container(tmp_path / "a.g722", x, 16000, "g722", format="g722")
    wide = Input("audio", "samples", "float32", (), rate=16000.0)
    for name in ("a.m4a", "a.g722"):
        found = everything(tmp_path / name, wide, 160)
        assert abs(len(found) - len(x)) <= 2048
        alike = np.correlate(found[1000:5000], x[2000:4000] / 32768, "valid")
        assert alike.max() > 0.9 * np.square(x[2000:4000] / 32768).sum()
    assert "converted" in notes_of(tmp_path / "a.m4a", MONO)


def test_a_container_from_a_pipe(tmp_path, monkeypatch):
    x = (voice(0.4, 8000)[:, 0] * 30000).astype("<i2")
    write_container(tmp_path / "a.mka", x, 8000, "pcm_s16le")
    give_stdin(monkeypatch, (tmp_path / "a.mka").read_bytes())
    np.testing.assert_array_equal(everything("-", MONO, format="audio"), x.astype(np.float32) / 32768)
    soundfile.write(tmp_path / "a.ogg", x, 8000)
    give_stdin(monkeypatch, (tmp_path / "a.ogg").read_bytes())
    assert abs(len(everything("-", MONO, format="audio")) - len(x)) < 256


def test_what_is_no_audio(tmp_path, monkeypatch):
    (tmp_path / "a.mkv").write_bytes(b"no container")
    with pytest.raises(SourceError, match="is not audio that libsndfile or libav reads"):
        everything(tmp_path / "a.mkv", MONO)
    with av.open(str(tmp_path / "film.mp4"), "w") as file:
        video = file.add_stream("mpeg4", rate=10)
        video.width = video.height = 32
        file.mux(video.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), "rgb24")))
        file.mux(video.encode(None))
    with pytest.raises(SourceError, match="no audio in it"):
        everything(tmp_path / "film.mp4", MONO)
    hide(monkeypatch, "av", "soundfile")
    with pytest.raises(SourceError, match=r"pip install 'streamssm\[media\]'"):
        everything(tmp_path / "a.mkv", MONO)
    (tmp_path / "a.ogg").write_bytes(b"OggS")
    with pytest.raises(SourceError, match=r"needs soundfile; pip install 'streamssm\[audio\]'"):
        everything(tmp_path / "a.ogg", MONO)


# folders


@pytest.fixture
def folder(tmp_path):
    """Audio of several kinds, rates and depths, and what is none."""
    place = tmp_path / "talks"
    (place / "b").mkdir(parents=True)
    (place / ".hidden").mkdir()
    soundfile.write(place / "c.wav", voice(0.1, 8000), 8000)
    soundfile.write(place / "b" / "x.flac", voice(0.2, 44100, 2), 44100)
    soundfile.write(place / "a.ogg", voice(0.1, 16000), 16000)
    soundfile.write(place / ".hidden" / "no.wav", voice(0.1, 8000), 8000)
    (place / "readme.txt").write_text("no audio")
    return place


def test_a_folder_gives_each_file_as_a_record(folder):
    with open_source(str(folder), Request(MONO)) as source:
        assert source.replayable
        found = records(source, 100)
        assert len(source.notes) == 3  # two conversions and a mix: each is told once
    assert [name for name, _ in found] == ["a.ogg", "b/x.flac", "c.wav"]
    for name, items in found:
        np.testing.assert_array_equal(items, everything(folder / name, MONO))


def test_records_can_be_left_out(folder):
    with open_source(str(folder), Request(MONO)) as source:
        source.skip_record()
        assert source.record == "a.ogg"
        assert source.more
        source.read(10)
        assert source.record == "b/x.flac"
        source.skip_record()
        assert [name for name, _ in records(source, 100)] == ["c.wav"]
        assert not source.more


def test_a_bad_file_in_a_folder(folder):
    (folder / "b" / "bad.wav").write_bytes(b"RIFF")
    with (
        open_source(str(folder), Request(MONO)) as source,
        pytest.raises(SourceError, match=r"bad.wav is trunc"),
    ):
        records(source, 100)
    short = (folder / "c.wav").read_bytes()[:-400]
    (folder / "c.wav").write_bytes(short)
    with open_source(str(folder), Request(MONO, on_bad="skip")) as source:
        assert [name for name, _ in records(source, 100)] == ["a.ogg", "b/x.flac"]
        left_out = [note for note in source.notes if note.endswith("left out")]
        assert ["bad.wav is truncated" in note for note in left_out] == [True, False]
        assert "c.wav is truncated" in left_out[1]


def test_a_folder_of_tables(tmp_path):
    np.save(tmp_path / "b.npy", np.ones((2, 3), np.float32))
    (tmp_path / "a.csv").write_text("1,2,3\n")
    with open_source(str(tmp_path), Request(ROWS)) as source:
        assert [(name, items.tolist()) for name, items in records(source, 5)] == [
            ("a.csv", [[1, 2, 3]]),
            ("b.npy", [[1, 1, 1], [1, 1, 1]]),
        ]


# pace


def test_a_wrong_rate_is_noted(monkeypatch):
    now = [0.0]

    class Live(FrameSource):
        def _frames(self, count: int) -> np.ndarray:
            now[0] += self.period
            return np.zeros((count, 1), np.float32)

    for period, wrong in [(0.01, False), (0.0105, False), (0.005, True), (0.03, True)]:
        live = Live("microphone", Converter("microphone", 8000.0, 1, Request(MONO)))
        live.period = period
        source = WatchedSource(live, 8000.0, lambda: now[0])
        for _ in range(3000):
            source.read(80)
        assert bool(source.notes) == wrong
        if wrong:
            assert f"brings {80 / period:.0f} items a second, not 8000" in source.notes[0]


def test_a_piped_file_says_nothing_of_its_rate():
    now = [0.0]

    class Piped(FrameSource):
        def _frames(self, count: int) -> np.ndarray:
            now[0] += 0.001
            return np.zeros((count, 1), np.float32)

    source = WatchedSource(Piped("x", Converter("x", 8000.0, 1, Request(MONO))), 8000.0, lambda: now[0])
    for _ in range(10_000):
        source.read(80)
        now[0] += 0.004  # most of the time is spent on the work
    assert not source.notes


def test_a_fifo_is_read_as_it_comes(tmp_path):
    path = tmp_path / "fifo"
    os.mkfifo(path)
    x = (voice(0.2, 16000)[:, 0] * 30000).astype("<i2")
    writer = threading.Thread(target=path.write_bytes, args=(x.tobytes(),))
    writer.start()
    found = everything(path, MONO, format="s16le", rate=16000.0)
    writer.join()
    np.testing.assert_array_equal(
        found, soxr.resample(x[:, None].astype(np.float32) / 32768, 16000, 8000)[:, 0]
    )


def test_a_stop_gives_what_was_received(tmp_path):
    path = tmp_path / "fifo"
    os.mkfifo(path)
    stop = Stop()

    def send() -> None:
        with path.open("wb") as file:
            file.write(bytes(2 * 4410))
            file.flush()
            threading.Event().wait(0.1)
            stop.request()
            stop_seen.wait(10)

    stop_seen = threading.Event()
    writer = threading.Thread(target=send)
    writer.start()
    found = []
    with open_source(str(path), Request(MONO, format="s16le", rate=44100.0)) as source, stop.leaving():
        while not stop.requested:
            found.append(len(source.read(80)))
        assert not len(source.read(80))
    stop_seen.set()
    writer.join()
    assert sum(found) == 800


def test_a_stop_leaves_a_container_in_a_pipe(tmp_path, monkeypatch):
    x = (voice(1, 8000)[:, 0] * 30000).astype("<i2")
    write_container(tmp_path / "a.mka", x, 8000, "pcm_s16le")
    data = (tmp_path / "a.mka").read_bytes()
    stop, left = Stop(), [data[:9000]]

    class Live(io.BytesIO):
        def read1(self, size: int = -1) -> bytes:
            if left:
                return left.pop()
            raise Interrupted

    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=Live()))
    with open_source("-", Request(MONO, format="audio")) as source, stop.leaving():
        found = []
        with pytest.raises(Interrupted):
            found.extend(items for items, _ in pieces(source, 100))
    assert 3000 < sum(map(len, found)) < 4500
