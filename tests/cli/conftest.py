"""Toy models and a recording, written once; the command line in process and in a process of its own."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_tools import PROGRAM, write_wav
from click.testing import CliRunner, Result
from voice_toy import TOYS, recording, voice_toy

from streamssm.cli import cli


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Path:
    """A folder with voice.onnx, the toys of the runtime, and speech.wav."""
    folder = tmp_path_factory.mktemp("made")
    voice_toy().write(folder)
    for toy in TOYS.values():
        toy().write(folder)
    write_wav(folder / "speech.wav", recording())
    return folder


@pytest.fixture
def call(made, monkeypatch) -> Callable[..., Result]:
    """Run a command in this process, in the folder of the models."""
    monkeypatch.chdir(made)

    def invoke(*arguments: object, stdin: bytes = b"") -> Result:
        return CliRunner().invoke(cli, [str(argument) for argument in arguments], input=stdin)

    return invoke


@pytest.fixture
def refused(call) -> Callable[..., str]:
    """Run a command that must fail; return its one line on stderr."""

    def invoke(*arguments: object, code: int, stdin: bytes = b"") -> str:
        result = call(*arguments, stdin=stdin)
        assert result.exit_code == code, result.output
        assert result.stderr.startswith("error: ")
        assert result.stderr.count("\n") == 1
        assert "Traceback" not in result.stderr
        return result.stderr

    return invoke


@pytest.fixture
def process(made) -> Callable[..., subprocess.Popen]:
    """Start a command as a process of its own, in the folder of the models."""

    def start(*arguments: object, **options: object) -> subprocess.Popen:
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        return subprocess.Popen([*PROGRAM, *map(str, arguments)], cwd=made, **(pipes | options))

    return start
