"""ws:// against a real server on loopback."""

import base64
import contextlib
import hashlib
import json
import re
import socket
import ssl
import sys
import threading
import time

import numpy as np
import pytest
from live_tools import ROWS, SOUND, Handler, free_port, make_certificate, reading, rows

from streamssm.errors import SourceError, UsageError
from streamssm.live import connection
from streamssm.sources import Request, open_source, websocket
from streamssm.sources.base import Gap

ConnectionClosed = pytest.importorskip("websockets.exceptions").ConnectionClosed


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(connection, "FIRST_WAIT", 0.02)


@pytest.fixture
def serve():
    servers = []

    def start(talk, port: int = 0, **options) -> Handler:
        servers.append(Handler(talk, port, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def test_rows_as_json_and_binary_until_the_server_is_done(serve):
    x = rows(0, 100)

    def talk(peer, number):
        peer.send(json.dumps(x[:1].tolist()))
        peer.send(x[1:60].tobytes())
        peer.send(json.dumps({"b": -60.0, "a": 60.0}))
        peer.send(b"")
        peer.send(x[61:].tobytes())

    with reading(serve(talk).uri, ROWS, names=("a", "b")) as read:
        read.wait_end()
    np.testing.assert_array_equal(read.items, x)
    assert (read.gaps, read.error) == ([], None)


def test_samples_of_another_rate_and_several_channels(serve):
    soxr = pytest.importorskip("soxr")
    x = np.random.default_rng(0).integers(-3000, 3000, (44100, 2)).astype("<i2")

    def talk(peer, number):
        for part in np.array_split(x, 37):
            peer.send(part.tobytes())

    options = {"rate": 44100.0, "channels": 2, "format": "s16le"}
    with reading(serve(talk).uri, SOUND, **options) as read:
        read.wait_end()
    assert read.error is None
    assert len(read.items) == 8000
    mixed = (x[:, 0].astype(np.float32) + x[:, 1]) / 65536
    expected = soxr.resample(mixed, 44100, 8000)
    assert np.abs(np.array(read.items[:7900]) - expected[:7900]).max() < 1e-4
    assert any("44100 Hz is converted" in note for note in read.source.notes)


def test_garbage_is_left_out_and_the_next_message_is_fine(serve):
    bad = ['{"a": 1}', "hello", b"\x00" * 7, "[1, 2, 3]", '{"status": "on"}', b"\xff" * 8]

    def talk(peer, number):
        for place, garbage in enumerate(bad):
            peer.send(rows(place, 1).tobytes())
            peer.send(garbage)
        peer.send(rows(len(bad), 1).tobytes())

    with reading(serve(talk).uri, ROWS, names=("a", "b")) as read:
        read.wait_end()
    np.testing.assert_array_equal(read.items, rows(0, 7))
    known = [1, None, None, 1, None, 1]
    assert read.gaps == [(place, Gap("invalid", items)) for place, items in enumerate(known, 1)]
    assert [note for note in read.source.notes if "'a' is missing" in note or "'b' is missing" in note]
    assert len(read.source.notes) == 3  # of 6


def test_numbered_messages_tell_what_is_missing(serve):
    def talk(peer, number):
        for seq in (0, 1, 5, 6):
            peer.send(json.dumps({"x": rows(seq * 2, 2).tolist(), "seq": seq}))

    with reading(serve(talk).uri, ROWS) as read:
        read.wait_end()
    assert read.gaps == [(4, Gap("missing", 6))]
    np.testing.assert_array_equal(read.items, rows(0, 14)[[0, 1, 2, 3, 10, 11, 12, 13]])


def test_a_server_that_vanishes_and_returns(serve):
    def leave(peer, number):
        peer.send(rows(0, 3).tobytes())
        peer.socket.shutdown(socket.SHUT_RDWR)

    def stay(peer, number):
        peer.send(rows(3, 3).tobytes())

    first = serve(leave)
    with reading(first.uri, ROWS) as read:
        read.wait(3)
        first.close()
        time.sleep(0.2)  # some attempts fail meanwhile
        serve(stay, first.port)
        read.wait_end()
    np.testing.assert_array_equal(read.items, rows(0, 6))
    # it may have come back before it was closed for good; then there is one gap all the same
    assert {place for place, _ in read.gaps} <= {3, 6}
    gap = read.wait_gap("disconnected")
    assert gap.items is None
    assert gap.seconds > 0
    assert read.error is None


@pytest.mark.parametrize(("reconnect", "said"), [(0, "was lost"), (2, "2 attempts to come back failed")])
def test_attempts_are_limited(serve, reconnect, said):
    def leave(peer, number):
        if number == 0:
            peer.send(rows(0, 3).tobytes())
        peer.socket.shutdown(socket.SHUT_RDWR)

    with reading(serve(leave).uri, ROWS, reconnect=reconnect) as read:
        read.wait_end()
    np.testing.assert_array_equal(read.items[:3], rows(0, 3))
    assert isinstance(read.error, SourceError)
    assert said in str(read.error)


def test_what_was_never_there_was_not_lost():
    with reading("ws://127.0.0.1:9/x", ROWS, reconnect=0) as read:
        read.wait_end()
    assert "cannot be reached" in str(read.error)


def test_a_message_beyond_the_limit_is_never_held(serve):
    def talk(peer, number):
        if number == 0:
            peer.send(rows(0, 2).tobytes())
            with contextlib.suppress(OSError, ConnectionClosed):
                peer.send(bytes(100_000_000))
        else:
            peer.send(rows(2, 2).tobytes())

    with reading(serve(talk, compression=None).uri, ROWS) as read:
        read.wait_end()
    assert read.error is None
    np.testing.assert_array_equal(read.items, rows(0, 4))
    assert [(place, gap.reason) for place, gap in read.gaps] == [(2, "invalid"), (2, "disconnected")]
    assert "larger than 1048576 bytes; raise --max-message" in read.source.notes[0]


def test_a_compressed_message_is_judged_by_what_it_unpacks_to(serve):
    def talk(peer, number):
        if number == 0:
            peer.send(bytes(50_000_000))
        else:
            peer.send(rows(0, 2).tobytes())

    with reading(serve(talk).uri, ROWS) as read:
        read.wait_end()
    np.testing.assert_array_equal(read.items, rows(0, 2))
    assert read.gaps[0][1] == Gap("invalid")


def test_what_cannot_be_reached_or_refuses():
    uri = f"ws://127.0.0.1:{free_port()}/a"
    with reading(uri, ROWS) as read:
        read.wait_end()
    assert "cannot be reached" in str(read.error)
    assert "--reconnect" in str(read.error)
    with pytest.raises(UsageError, match="names no host"):
        open_source("ws:///a", Request(ROWS))


@pytest.mark.parametrize("status", [401, 404, 503])
def test_http_refusals(serve, status):
    def refuse(peer, request):
        return peer.respond(status, "no\n")

    server = serve(lambda peer, number: None, process_request=refuse)
    with reading(server.uri.replace("ws://", "ws://me:secret@"), ROWS, reconnect=1) as read:
        read.wait_end()
    assert f"HTTP status {status}" in str(read.error)
    assert ("attempts" in str(read.error)) == (status == 503)
    assert "secret" not in str(read.error)


def test_certificates(serve, tmp_path, monkeypatch):
    made, key = make_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made, key)
    server = serve(lambda peer, number: peer.send(rows(0, 1).tobytes()), ssl=context)
    uri = server.uri.replace("ws://", "wss://")
    with reading(uri, ROWS) as read:
        read.wait_end()
    assert "certificate" in str(read.error)
    monkeypatch.setenv("SSL_CERT_FILE", str(made))
    with reading(uri, ROWS) as read:
        read.wait_end()
    assert len(read.items) == 1


def test_a_slow_reader_makes_the_server_wait_and_loses_nothing(serve):
    from streamssm.live.queue import Queue

    def talk(peer, number):
        for place in range(40):
            peer.send(np.tile(rows(place, 1), (10_000, 1)).tobytes())

    gate = threading.Event()
    gate.set()
    with reading(serve(talk, compression=None).uri, ROWS, gate, queue=Queue(items=1000)) as read:
        read.wait(1)
        gate.clear()
        inbox = read.source.inbox
        read.until(lambda: inbox.waiting > 750)  # full: the rest waits in the network
        gate.set()
        read.wait_end()
        assert inbox.high_water <= 1000
    np.testing.assert_array_equal(read.items, np.repeat(rows(0, 40), 10_000, 0))
    assert read.gaps == []


def test_a_server_that_hangs(serve, monkeypatch):
    """Its machine went away: the connection is there, but nobody answers."""
    monkeypatch.setattr(websocket, "_SILENCE", 0.1)
    answer = b"HTTP/1.1 101 Go\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "

    def hang(listener) -> None:
        peer, _ = listener.accept()
        request = peer.recv(4096).decode()
        key = re.search(r"Sec-WebSocket-Key: (\S+)", request)[1] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        peer.sendall(answer + base64.b64encode(hashlib.sha1(key.encode()).digest()) + b"\r\n\r\n")
        peer.sendall(b"\x82\x08" + rows(7, 1).tobytes())
        listener.close()
        stopped.wait(10)
        peer.close()

    stopped = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    threading.Thread(target=hang, args=[listener], daemon=True).start()
    with reading(f"ws://127.0.0.1:{port}/", ROWS, reconnect=0) as read:
        read.wait_end()
        stopped.set()
    assert read.items == [[7, -7]]
    assert "was lost: no answer for 0.1 s" in str(read.error)


def test_without_the_library(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("websockets")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "websockets", None)
    with pytest.raises(SourceError, match=r"pip install 'streamssm\[live\]'"):
        open_source("ws://host/a", Request(ROWS))


def test_stopping_is_prompt(serve):
    server = serve(lambda peer, number: peer.recv())
    began = time.monotonic()
    with reading(server.uri, ROWS) as read:
        time.sleep(0.1)
    assert time.monotonic() - began < 3
    read.wait_end()
