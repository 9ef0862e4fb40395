"""Where bytes go: continued at a length, synced, and refused before any work."""

import os
from pathlib import Path

import pytest

from streamssm.cli.output import Output
from streamssm.errors import OutputError


def test_a_file_is_continued_at_a_length(tmp_path):
    path = tmp_path / "out"
    with Output(path) as output:
        output.write(b"one two")
        output.sync()
        assert output.position == 7
    with Output(path, at=4) as output:
        assert path.read_bytes() == b"one "
        output.write(b"three")
        assert output.position == 9
        output.sync()
        assert path.read_bytes() == b"one three"
    with Output(path, at=0):
        assert path.read_bytes() == b""
    with Output(tmp_path / "new", at=0) as output:
        output.write(b"x")
    assert (tmp_path / "new").read_bytes() == b"x"


def test_a_file_that_is_too_short_or_missing_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "out"
    path.write_bytes(b"abc")
    with pytest.raises(OutputError, match=r"has 3 bytes, but 4 were written .*without --resume"):
        Output(path, at=4)
    assert path.read_bytes() == b"abc"
    with pytest.raises(OutputError, match=r"missing cannot be continued: No such .*name another file"):
        Output(tmp_path / "missing", at=4)
    with pytest.raises(OutputError, match="cannot be written: Is a directory"):
        Output(tmp_path, at=0)


def test_what_is_no_file_just_goes_on(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with Output(pipe, at=100) as output:
        output.write(b"more")
        output.sync()
        output.finish(lambda file: file.seek(0))
        assert output.position == 104
    assert os.read(reader, 10) == b"more"
    os.close(reader)


def test_a_full_disk_is_an_error_of_ours():
    with pytest.raises(OutputError, match="No space left"), Output(Path("/dev/full")) as output:
        output.write(b"x")


def test_a_finished_file_is_corrected_in_place(tmp_path):
    def correct(file):
        file.seek(0)
        file.write(b"HEAD")

    path = tmp_path / "out"
    with Output(path) as output:
        output.write(b"head and body")
        output.finish(correct)
    assert path.read_bytes() == b"HEAD and body"
    with Output(path, at=4) as output:
        output.finish(correct)
    assert path.read_bytes() == b"HEAD"
