"""``streamssm run`` on live sources, as a process of its own."""

import json
import signal
import socket
import subprocess
import threading
import time

import numpy as np
import pytest
from cli_tools import PROGRAM
from live_tools import PATIENCE, Broker, Handler, Publisher, rows
from voice_toy import recording


class Running:
    """A run whose lines are read in a thread."""

    def __init__(self, made, *arguments: object):
        command = [*PROGRAM, "run", *map(str, arguments)]
        self._process = subprocess.Popen(command, cwd=made, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.lines: list[dict] = []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        for line in self._process.stdout:
            self.lines.append(json.loads(line))

    def wait(self, count: int) -> None:
        end = time.monotonic() + PATIENCE
        while len(self.lines) < count:
            assert time.monotonic() < end, self.lines
            time.sleep(0.01)

    def stop(self) -> str:
        self._process.send_signal(signal.SIGINT)
        return self.end(130)

    def end(self, code: int) -> str:
        self._thread.join(PATIENCE)
        text = self._process.stderr.read().decode()
        assert self._process.wait(PATIENCE) == code, text
        return text


@pytest.fixture
def broker(tmp_path):
    log = tmp_path / "broker.log"
    made = Broker(tmp_path, f"log_dest file {log}", "log_type subscribe", "user root")
    made.log = log
    made.start()
    yield made
    made.kill()


def wait_subscribed(broker, times: int) -> None:
    end = time.monotonic() + PATIENCE
    while not broker.log.exists() or broker.log.read_text().count(" 1 sensors/a") < times:
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_sensor_model_on_a_broker_that_dies_and_comes_back(made, call, broker, tmp_path):
    x = rows(0, 24)
    stats = tmp_path / "stats.json"
    running = Running(
        made, "ema.onnx", broker.uri, "--columns", "ax,ay", "--emit", "items", "--stats", stats, "--chunk", 1
    )
    wait_subscribed(broker, 1)
    publisher = Publisher(broker.port)
    for place, (a, b) in enumerate(x[:12].tolist()):
        publisher.send(json.dumps({"ax": a} if place == 5 else {"ax": a, "ay": b, "more": "text"}))
    running.wait(13)
    publisher.close()
    broker.kill()
    broker.start()
    wait_subscribed(broker, 2)
    publisher = Publisher(broker.port)
    for a, b in x[12:].tolist():
        publisher.send(json.dumps([a, b]))
    running.wait(26)
    publisher.close()
    said = running.stop()
    assert "ay' is missing" in said

    invalid, away = (row for row in running.lines if "gap" in row)
    assert invalid == {"gap": "invalid", "items": 1, "seconds": None, "time": 0.1}
    assert (away["gap"], away["items"]) == ("disconnected", None)
    assert away["seconds"] > 0
    assert away["time"] == 0.24
    # one missing row is filled by the one before, so that times stay true
    filled = x.copy()
    filled[5] = x[4]
    np.savetxt(tmp_path / "x.csv", filled, delimiter=",")
    whole = call("run", "ema.onnx", tmp_path / "x.csv", "--emit", "items").stdout
    assert [row for row in running.lines if "gap" not in row] == [
        json.loads(line) for line in whole.splitlines()
    ]
    assert json.loads(stats.read_text())["gaps"]


@pytest.mark.parametrize("text", [False, True])
def test_a_websocket_gives_the_events_of_the_file(made, call, text):
    samples = recording()

    def talk(peer, number):
        for part in np.array_split(samples, 50):
            peer.send(json.dumps((part / 32768).tolist()) if text else part.tobytes())

    server = Handler(talk)
    try:
        running = Running(made, "voice.onnx", server.uri, "--input-format", "auto" if text else "s16le")
        running.end(0)
    finally:
        server.close()
    expected = call("run", "voice.onnx", "speech.wav").stdout
    assert running.lines == [json.loads(line) for line in expected.splitlines()]


def test_nothing_to_reach_is_one_line(made):
    running = Running(made, "voice.onnx", "ws://127.0.0.1:9/a")
    said = running.end(1)
    assert said.count("\n") == 1
    assert said.startswith("error: ws://127.0.0.1:9/a cannot be reached")


def test_a_signal_while_it_waits_for_the_first_connection(made):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE)
        uri = f"ws://127.0.0.1:{listener.getsockname()[1]}/a"
        running = Running(made, "voice.onnx", uri, "--reconnect", "1000")
        listener.accept()[0].close()
    said = running.stop()
    assert "Traceback" not in said
