"""What the tests of live sources share: a reader in a thread, a broker, a web server."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamssm.manifest import Input
from streamssm.sources import Request, open_source
from streamssm.sources.base import Gap

PATIENCE = 15.0  # seconds until a test gives up
ROWS = Input("x", "features", "float32", (2,), rate=50.0)
SOUND = Input("audio", "samples", "float32", (), rate=8000.0)


class Reading:
    """A source that is read in a thread: its items, and its gaps with the number of items before them."""

    def __init__(self, source: Any, slow: threading.Event | None = None):
        self.source = source
        self.items: list[Any] = []
        self.gaps: list[tuple[int, Gap]] = []
        self.error: Exception | None = None
        self.ended = False
        self._changed = threading.Condition()
        self._gate = slow
        threading.Thread(target=self._run, daemon=True).start()

    def until(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE
        with self._changed:
            while not condition():
                assert time.monotonic() < end, (len(self.items), self.gaps, self.error)
                self._changed.wait(0.01)  # conditions may be of others, who do not notify

    def wait(self, items: int) -> None:
        self.until(lambda: len(self.items) >= items or self.ended)
        assert len(self.items) >= items, (self.items, self.gaps, self.error)

    def wait_gap(self, reason: str) -> Gap:
        self.until(lambda: any(gap.reason == reason for _, gap in self.gaps) or self.ended)
        return next(gap for _, gap in self.gaps if gap.reason == reason)

    def wait_end(self) -> None:
        self.until(lambda: self.ended)

    def _run(self) -> None:
        try:
            while True:
                if self._gate is not None:
                    self._gate.wait()
                items = self.source.read(64)
                with self._changed:
                    self.gaps += [(len(self.items), gap) for gap in self.source.gaps]
                    self.items += items.tolist()
                    self._changed.notify_all()
                if not len(items):
                    self.source.settle()  # tells what went wrong, if anything did
                    break
        except Exception as error:
            self.error = error
        with self._changed:
            self.ended = True
            self._changed.notify_all()


@contextlib.contextmanager
def reading(
    uri: str, wanted: Input, slow: threading.Event | None = None, **options: Any
) -> Iterator[Reading]:
    with open_source(uri, Request(wanted, **options)) as source:
        yield Reading(source, slow)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def mosquitto() -> str:
    found = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
    if found is None:
        pytest.skip("there is no mosquitto on this machine; on Debian: apt-get install mosquitto")
    return found


class Broker:
    """A mosquitto on loopback; every start is on the same port."""

    def __init__(self, folder: Path, *lines: str, anonymous: bool = True):
        self.port = free_port()
        self._program, self._config = mosquitto(), folder / f"mosquitto-{self.port}.conf"
        allow = "true" if anonymous else "false"
        head = [f"listener {self.port} 127.0.0.1", f"allow_anonymous {allow}", "max_queued_messages 0"]
        self._config.write_text("\n".join([*head, *lines]) + "\n")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}/sensors/a"

    def start(self) -> None:
        command = [self._program, "-c", str(self._config)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(500):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            assert self._process.poll() is None, "the broker did not start"
            time.sleep(0.01)
        raise AssertionError("the broker does not listen")

    def pause(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


class Publisher:
    """Publishes to a topic, each message acknowledged by the broker."""

    def __init__(self, port: int, topic: str = "sensors/a", user: str | None = None):
        client = pytest.importorskip("paho.mqtt.client")
        self._client = client.Client(client.CallbackAPIVersion.VERSION2)
        if user is not None:
            self._client.username_pw_set(user, user)
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        self._topic = topic

    def send(self, payload: str | bytes, qos: int = 1, retain: bool = False) -> None:
        self._client.publish(self._topic, payload, qos, retain).wait_for_publish(PATIENCE)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


class Handler:
    """A websocket server on loopback; ``talk`` is what it does with each connection, by its number."""

    def __init__(self, talk: Callable[[Any, int], None], port: int = 0, **options: Any):
        server = pytest.importorskip("websockets.sync.server")
        numbers = itertools.count()
        self._server = server.serve(lambda one: talk(one, next(numbers)), "127.0.0.1", port, **options)
        self.port: int = self._server.socket.getsockname()[1]
        self.uri = f"ws://127.0.0.1:{self.port}/feed"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()


def rows(start: int, count: int) -> np.ndarray:
    """Rows [n, 2] that tell their own number."""
    return np.stack([np.arange(start, start + count), -np.arange(start, start + count)], 1).astype("<f4")


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for loopback that is its own authority, and its key."""
    key, made = folder / "key.pem", folder / "cert.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
    ]
    command += ["-keyout", str(key), "-out", str(made), "-days", "1", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no openssl on this machine; on Debian: apt-get install openssl")
    return made, key
