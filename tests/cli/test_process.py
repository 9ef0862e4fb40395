"""What only a process of its own shows: signals, pipes, imports, exit codes."""

import json
import signal
import subprocess
import sys
import time

import pytest
from cli_tools import PROGRAM
from voice_toy import recording


def finish(process: subprocess.Popen, stdin: bytes | None = None) -> tuple[bytes, bytes]:
    return process.communicate(stdin, timeout=20)


def test_help_is_light():
    code = "import sys; from streamssm.cli import cli; cli.main(['run', '--help'], standalone_mode=False)\n"
    probe = "import atexit; atexit.register(lambda: print(*sorted(sys.modules), file=sys.stderr)); "
    found = subprocess.run(
        [sys.executable, "-c", "import sys; " + probe + code], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0
    assert "SOURCE" in found.stdout
    loaded = set(found.stderr.split())
    assert not loaded & {"numpy", "onnxruntime", "torch", "soundfile", "msgspec"}


def test_info_needs_no_backend(made):
    code = "import sys; sys.modules['onnxruntime'] = None; from streamssm.cli import main; main()"
    for model in ("voice.onnx", "tokens.onnx"):
        command = [sys.executable, "-c", code, "info", model]
        found = subprocess.run(command, cwd=made, capture_output=True, text=True, check=False)
        assert found.returncode == 0, found.stderr


def test_data_on_stdout_report_on_stderr_same_as_in_process(process, call, made):
    running = process("run", "voice.onnx", "-", "--chunk", "7ms")
    out, err = finish(running, (made / "speech.wav").read_bytes())
    assert running.returncode == 0
    assert out == call("run", "voice.onnx", "speech.wav").stdout_bytes
    assert b"real-time factor" in err
    assert b"\x1b" not in out + err


def test_no_arguments_show_the_help(process):
    running = process()
    out, err = finish(running)
    assert b"COMMAND" in out + err
    assert b"Traceback" not in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_flushes_closes_the_event_and_exits_130(process, number):
    # live input that stays open: the program waits for more when the signal comes
    running = process("run", "voice.onnx", "-", "--input-format", "s16le")
    running.stdin.write(recording()[:9000].tobytes())
    running.stdin.flush()
    start = json.loads(running.stdout.readline())
    time.sleep(0.1)
    running.send_signal(number)
    running.stdin = None  # it stays open
    out, err = finish(running)
    assert running.returncode == 130
    (end,) = [json.loads(line) for line in out.splitlines()]
    assert start["event"] == "start"
    assert end == {"event": "end", "label": "speech", "time": 1.12, "index": 112, "cut": True}
    assert b"real-time factor" in err
    assert b"Traceback" not in err


def test_an_interrupted_sim_run_saves_its_state(process, made):
    running = process("run", "voice.onnx", "sim:speech.wav", "--save-state", "cut.state", "--emit", "items")
    running.stdout.readline()
    running.send_signal(signal.SIGINT)
    out, err = finish(running)
    assert running.returncode == 130, err
    assert (made / "cut.state").exists()
    assert len(out.splitlines()) < 299


def test_a_reader_that_leaves_ends_it_quietly(process, tmp_path):
    stats = tmp_path / "stats.json"
    command = ("run", "voice.onnx", "-", "--input-format", "s16le", "--emit", "items", "--stats", str(stats))
    running = process(*command)
    running.stdin.write(recording()[:800].tobytes())
    running.stdin.flush()
    running.stdout.readline()
    running.stdout.close()
    running.stdout = None
    _, err = finish(running, recording().tobytes())
    assert running.returncode == 0
    assert err == b""
    assert json.loads(stats.read_text())["lines"] >= 1


@pytest.mark.parametrize("command", [("info", "--json"), ("info",)])
def test_a_reader_of_a_report_that_leaves_is_no_failure(process, command):
    running = process(*command, "voice.onnx")
    running.stdout.close()
    running.stdout = None
    _, err = finish(running)
    assert (running.returncode, err) == (0, b"")


def test_the_module_runs_too(made):
    command = [sys.executable, "-m", "streamssm", "info", "voice.onnx", "--json"]
    found = subprocess.run(command, cwd=made, capture_output=True, text=True, check=True)
    assert json.loads(found.stdout)["name"] == "voice"


def test_an_interrupt_while_libraries_are_imported_is_one_line():
    code = """if True:
        import sys
        class Finder:
            def find_spec(self, name, path, target=None):
                if name == "click":
                    raise KeyboardInterrupt
        sys.meta_path.insert(0, Finder())
        from streamssm.__main__ import main
        main()
    """
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr) == (130, "error: interrupted\n")


def test_a_reader_that_leaves_before_a_state_is_saved_is_an_error(process, made):
    running = process(
        "run", "voice.onnx", "-", "--input-format", "s16le", "--emit", "items", "--save-state", "b.state"
    )
    running.stdout.close()
    running.stdout = None
    _, err = finish(running, recording().tobytes())
    assert running.returncode == 1
    assert err.startswith(b"error: standard output was closed")
    assert not (made / "b.state").exists()


def test_a_full_disk_is_one_line(process, made):
    with open("/dev/full", "wb") as full:
        running = process("run", "voice.onnx", "speech.wav", stdout=full)
        _, err = finish(running)
    assert running.returncode == 1
    assert err.splitlines()[0].startswith(b"error: standard output cannot be written: No space left")
    assert b"Traceback" not in err


def test_debug_shows_the_traceback(made):
    code = "import os; os.environ['STREAMSSM_DEBUG'] = '1'; " + PROGRAM[-1]
    command = [sys.executable, "-c", code, "run", "missing.onnx", "-"]
    found = subprocess.run(command, cwd=made, capture_output=True, text=True, check=False)
    assert found.returncode == 3
    assert "Traceback" in found.stderr
    assert found.stderr.splitlines()[-1].startswith("error: ")
