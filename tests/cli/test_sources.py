import contextlib
import io
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from source_tools import BYTES, IDS, MONO, PAIR, ROWS, everything, give_stdin

from streamssm.errors import SourceError, StreamSSMError, UsageError
from streamssm.manifest import Input
from streamssm.sources import FORMATS, Request, open_source
from streamssm.sources.bytestream import ByteStream
from streamssm.sources.npy import ArraySource
from streamssm.sources.sim import SimSource

soundfile = pytest.importorskip("soundfile")


@pytest.fixture
def audio() -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (100, 2))


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW"])
@pytest.mark.parametrize("kind", ["WAV", "WAVEX"])
def test_wav_reads_as_libsndfile_does(tmp_path, audio, subtype, kind):
    path = tmp_path / "a.wav"
    soundfile.write(path, audio, 8000, subtype=subtype, format=kind)
    expected = soundfile.read(path, dtype="float32")[0]
    found = everything(path, PAIR)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(everything(path, MONO, channel=2), expected[:, 1])


@pytest.mark.parametrize("suffix", ["flac", "ogg", "aiff"])
def test_other_audio_files(tmp_path, audio, suffix):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, audio[:, 0], 8000)
    np.testing.assert_array_equal(everything(path, MONO), soundfile.read(path, dtype="float32")[0])


@pytest.mark.parametrize(
    ("name", "dtype", "scale"),
    [("f32le", "<f4", 1), ("f64le", "<f8", 1), ("s16le", "<i2", 2**15), ("s32le", "<i4", 2**31)],
)
def test_raw_samples(tmp_path, audio, name, dtype, scale):
    values = (audio * scale * 0.9).astype(dtype)
    path = tmp_path / "a.raw"
    path.write_bytes(values.tobytes())
    expected = (values.astype(np.float32) / np.float32(scale)).astype(np.float32)
    np.testing.assert_array_equal(everything(path, PAIR, format=name), expected)
    mono = everything(path, MONO, format=name, channels=2, channel=1)
    np.testing.assert_array_equal(mono, expected[:, 0])


def test_npy_csv_and_text(tmp_path):
    x = np.random.default_rng(0).standard_normal((10, 3)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    np.testing.assert_array_equal(everything(tmp_path / "x.npy", ROWS), x)
    np.save(tmp_path / "ids.npy", np.arange(5, dtype=np.uint8))
    assert everything(tmp_path / "ids.npy", IDS).tolist() == [0, 1, 2, 3, 4]
    (tmp_path / "ids.csv").write_text("4\n0\n")
    assert everything(tmp_path / "ids.csv", IDS).tolist() == [4, 0]
    (tmp_path / "a.txt").write_text("né\n")
    assert everything(tmp_path / "a.txt", BYTES).tolist() == [*"né\n".encode()]


@pytest.mark.parametrize(
    "text",
    [
        "a,b,c\n1,2,3\n4,5,6",
        "1;2;3\r\n4;5;6\r\n",
        '\ufeff"a"\t"b"\t"c"\n1\t2\t3\n\n4\t5\t6\n',
        "# note\n1 2 3\n4 5 6\n",
    ],
)
@pytest.mark.parametrize("count", [1, 2, 100])
def test_tables(tmp_path, text, count):
    path = tmp_path / "x.csv"
    path.write_text(text)
    assert everything(path, ROWS, count).tolist() == [[1, 2, 3], [4, 5, 6]]


def corrupt(tmp_path, make) -> str:
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros(100), 8000, subtype="PCM_16")
    path.write_bytes(make(path.read_bytes()))
    return str(path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda data: data[:-10], "truncated: its header announces 200 bytes of samples, 190 are there"),
        (lambda data: data[:30], "ends inside the wav header"),
        (lambda data: data[:44], "announces 200 bytes of samples, 0 are there"),
        (lambda data: b"", "is empty"),
        (lambda data: b"hello, this is text, really", "does not start like a wav file"),
        (lambda data: data[:40] + struct.pack("<I", 3), "holds no samples|announces 3 bytes"),
        (lambda data: data[:16] + struct.pack("<I", 2**31) + data[20:], "ends inside the wav header"),
        (lambda data: data[:12] + data[36:], "no format before its samples"),
    ],
)
def test_damaged_wav(tmp_path, make, message):
    with pytest.raises(SourceError, match=message):
        everything(corrupt(tmp_path, make), MONO)


@given(place=st.integers(0, 43), value=st.integers(0, 255), keep=st.integers(0, 244))
@settings(max_examples=150, deadline=None)
def test_no_wav_header_breaks_out_of_the_typed_errors(tmp_path_factory, place, value, keep):
    def make(data: bytes) -> bytes:
        return (data[:place] + bytes([value]) + data[place + 1 :])[:keep]

    with contextlib.suppress(StreamSSMError):
        everything(corrupt(tmp_path_factory.mktemp("wav"), make), MONO)


@pytest.mark.parametrize(
    ("name", "content", "wanted", "message"),
    [
        ("x.csv", "1,2\n", ROWS, "2 columns, the model takes 3; give it 3 columns"),
        ("x.csv", "1,2,3\n1,2\n", ROWS, "line 2: it has 2 columns"),
        ("x.csv", "1,2,3\n1,b,3\n", ROWS, "line 2: 'b' is not a number"),
        ("x.csv", "1,b,3\n", ROWS, "line 1: 'b' is not a number"),
        ("x.csv", "a,b,c\n", ROWS, "no rows"),
        ("x.csv", "1.5\n", IDS, "'1.5' is not a number of type int64"),
        ("x.csv", "9" * 30, IDS, "correct it"),
        ("x.csv", "0,5;1,5;2,5\n", ROWS, "decimals with a point"),
        ("x.csv", "a;b;c\n1;0,5;2\n", ROWS, "line 2: '1;0' is not .* decimals with a point"),
        ("x.csv", '"up;on",2,3\n', ROWS, "'up;on' is not a number of type float32; correct it"),
        ("x.csv", "1,2,3\n".encode("utf-16-le").decode(), ROWS, "line 1: it holds zero bytes"),
        ("x.npy", "no array", ROWS, "not a numpy array file"),
        ("x.flac", "no audio", MONO, "not audio|no audio"),
        ("x.wav", "no audio", IDS, "cannot feed a model of tokens"),
        ("x.txt", "text", IDS, "no rows"),
    ],
)
def test_bad_content(tmp_path, name, content, wanted, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(SourceError, match=message):
        everything(tmp_path / name, wanted)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 3)), "dtype float64, the model takes float32"),
        (np.zeros((4, 2), np.float32), r"shape \(4, 2\), the model takes \[T, 3\]"),
        (np.zeros(4, np.float32), "shape"),
        (np.zeros((0, 3), np.float32), "holds no items"),
        (np.array([{}]), "not a numpy array file"),
    ],
)
def test_bad_arrays(tmp_path, array, message):
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(SourceError, match=message):
        everything(tmp_path / "x.npy", ROWS)


ABSURD = b"\x93NUMPY\x01\x00\x76\x00{'descr': '<f4', 'fortran_order': False, 'shape': (%s"


@pytest.mark.parametrize(
    "content",
    [
        b"PK\x03\x04 no archive",
        b"\x93NUMPY",
        (ABSURD % b"").ljust(127) + b"\n",
        (ABSURD % b"4611686018427387904, 1024), }").ljust(127) + b"\n",
    ],
)
def test_damaged_arrays(tmp_path, content):
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(SourceError, match="not a numpy array file"):
        everything(tmp_path / "x.npy", ROWS)


def test_a_file_cut_inside_an_item_is_refused_before_it_is_read(tmp_path):
    (tmp_path / "a.raw").write_bytes(bytes(7))
    with pytest.raises(SourceError, match="middle of an item, after 1 of its 2 bytes"):
        open_source(str(tmp_path / "a.raw"), Request(MONO, "s16le"))


def test_rate_and_channels(tmp_path, audio):
    path = tmp_path / "a.wav"
    soundfile.write(path, audio, 8000)
    with pytest.raises(SourceError, match="50 items a second, the model takes 40; only audio is converted"):
        everything(path, Input("x", "features", "float32", (2,), rate=40.0), format="f32le", rate=50.0)
    with pytest.raises(SourceError, match="2 channels, the model takes 3; give it 3 channels"):
        everything(path, Input("audio", "samples", "float32", (3,), rate=8000.0))
    with pytest.raises(SourceError, match="2 channels, the model takes 1; pick one with --channel 1 to 2"):
        everything(path, Input("x", "features", "float32", (), rate=8000.0))
    with pytest.raises(UsageError, match=r"--channel 3: .* has channels 1 to 2"):
        everything(path, MONO, channel=3)
    with pytest.raises(UsageError, match="--channel 1 picks one channel, but the model takes 2"):
        everything(path, PAIR, channel=1)
    with pytest.raises(UsageError, match="says 8000 Hz, --rate says 16000"):
        everything(path, PAIR, rate=16000.0)
    with pytest.raises(UsageError, match="need --channels"):
        everything(path, MONO, format="s16le", channel=1)


def test_paths(tmp_path):
    with pytest.raises(SourceError, match="does not exist"):
        everything(tmp_path / "missing.wav", MONO)
    with pytest.raises(SourceError, match=r"is a folder without a file that ends in \.wav"):
        everything(tmp_path, MONO)
    with pytest.raises(UsageError, match="is a folder; a model of tokens takes one file"):
        everything(tmp_path, BYTES)
    with pytest.raises(SourceError, match="ftp:// is not a source"):
        everything("ftp://host/a", MONO)
    with pytest.raises(UsageError, match="has none"):
        everything("sim:x", BYTES)
    with pytest.raises(UsageError, match="own pace"):
        everything("sim:-", MONO)
    (tmp_path / "a.raw").write_bytes(b"1234567")
    with pytest.raises(SourceError, match="ends in the middle of an item, after 3 of its 4 bytes"):
        everything(tmp_path / "a.raw", MONO, format="f32le")


def test_standard_input(monkeypatch, tmp_path):
    x = np.arange(-50, 50, dtype="<i2")
    expected = x.astype(np.float32) / 32768
    file = io.BytesIO()
    soundfile.write(file, x, 8000, format="WAV", subtype="PCM_16")
    data = file.getvalue()
    # a writer that cannot seek leaves the sizes open
    for size in (struct.pack("<I", 200), b"\xff" * 4, b"\0" * 4, b"\x00\xf0\xff\x7f"):
        give_stdin(monkeypatch, data[:40] + size + data[44:])
        np.testing.assert_array_equal(everything("-", MONO), expected)
    give_stdin(monkeypatch, x.tobytes())
    np.testing.assert_array_equal(everything("-", MONO, format="s16le"), expected)
    give_stdin(monkeypatch, b"1,2,3\n")
    assert everything("-", ROWS).tolist() == [[1, 2, 3]]
    give_stdin(monkeypatch, b"ab")
    assert everything("-", BYTES).tolist() == [97, 98]


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (b"", {}, "standard input is empty"),
        (b"1,2", {"names": ("a",), "format": "s16le"}, "--columns names columns of a table"),
        (b"OggS", {}, "starts with b'OggS'"),
        (b"RIFF", {}, "ends inside the wav header"),
        (b"abc", {"format": "s16le"}, "middle of an item, after 1 of its 2"),
        (b"", {"format": "npy"}, "cannot carry npy"),
        (b"", {"format": "bytes"}, "bytes need a model of 256 tokens, this one takes samples"),
    ],
)
def test_bad_standard_input(monkeypatch, data, options, message):
    give_stdin(monkeypatch, data)
    with pytest.raises((SourceError, UsageError), match=message):
        everything("-", MONO, **options)


def test_a_truncated_pipe_is_told_at_its_end(monkeypatch, tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(100), 8000, subtype="PCM_16")
    give_stdin(monkeypatch, (tmp_path / "a.wav").read_bytes()[:-31])
    with open_source("-", Request(MONO)) as source:
        assert len(source.read(1000)) == 84
        with pytest.raises(SourceError, match="announces 200 bytes of samples, 169 are there"):
            source.read(1000)


class Drip(io.BytesIO):
    """A pipe that has a few bytes at a time."""

    def read1(self, size: int = -1) -> bytes:
        return super().read(min(size, 3))


def test_a_pipe_is_not_made_to_wait_for_more():
    stream = ByteStream(Drip(b"abcdefgh"))
    assert stream.read(2, 100) == b"ab"
    assert stream.read(2, 100) == b"cdef"
    assert stream.read(2, 100) == b"gh"
    assert stream.read(2, 100) == b""
    lines = ByteStream(Drip(b"a\nb\nc"))
    assert lines.read_lines(9) == [b"a"]
    assert lines.read_lines(9) == [b"b"]
    assert lines.read_lines(9) == [b"c"]
    assert lines.read_lines(9) == []


def test_sim_paces_by_the_item_clock():
    now, slept = [100.0], []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    sim = SimSource(ArraySource("x", np.zeros(10)), 10, lambda: now[0], sleep)
    assert len(sim.read(4)) == 4
    assert sim.due == pytest.approx(100.4)
    now[0] += 0.5  # a slow push: the next chunk is due already
    sim.read(4)
    assert sim.due == pytest.approx(100.8)
    assert slept == [pytest.approx(0.4)]
    assert len(sim.read(4)) == 2
    assert len(sim.read(4)) == 0
    assert sim.name == "sim:x"
    assert sim.total == 10


def test_the_command_line_lists_every_format():
    from streamssm.cli.run import INPUT_FORMATS

    assert set(INPUT_FORMATS) == {"auto", *FORMATS}
