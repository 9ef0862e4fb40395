"""mqtt:// against a real broker: mosquitto on loopback, started and killed by the tests."""

import json
import socket
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from live_tools import ROWS, SOUND, Broker, Publisher, free_port, make_certificate, reading, rows

from streamssm.errors import SourceError, UsageError
from streamssm.live import connection
from streamssm.live.queue import Queue
from streamssm.sources import Request, mqtt, open_source
from streamssm.sources.base import Gap

pytest.importorskip("paho.mqtt.client")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(connection, "FIRST_WAIT", 0.05)


@pytest.fixture
def broker(tmp_path):
    made = Broker(tmp_path)
    made.start()
    yield made
    made.kill()


@pytest.fixture
def publisher(broker):
    made = Publisher(broker.port)
    yield made
    made.close()


def subscribed(read) -> None:
    """Wait until the source hears: rows before that go nowhere."""
    read.until(lambda: read.source._receiver._ever or read.ended)
    assert read.error is None


@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.parametrize("version", ["", "&version=3"])
def test_rows_of_every_form(broker, publisher, qos, version):
    x = rows(0, 100)
    with reading(f"{broker.uri}?qos={qos}{version}", ROWS) as read:
        subscribed(read)
        publisher.send(json.dumps(x[:40].tolist()), qos)
        for a, b in x[40:70].tolist():
            publisher.send(json.dumps({"a": a, "b": b}), qos)
        for row in x[70:].tolist():
            publisher.send(json.dumps(row), qos)
        read.wait(100)
    np.testing.assert_array_equal(read.items, x)
    assert read.gaps == []
    assert any("columns a, b, as in the first message" in note for note in read.source.notes)


def test_binary_samples(broker, publisher):
    x = np.random.default_rng(0).integers(-3000, 3000, 4000).astype("<i2")
    with reading(broker.uri, SOUND, format="s16le") as read:
        subscribed(read)
        for part in np.array_split(x, 9):
            publisher.send(part.tobytes())
        read.wait(4000)
    np.testing.assert_array_equal(read.items, x / np.float32(32768))


def test_garbage_a_missing_column_and_the_next_row(broker, publisher):
    with reading(broker.uri, ROWS, names=("a", "b")) as read:
        subscribed(read)
        for bad in ('{"a": 1}', b"\xff\x00\x13", '{"status": "online"}', '{"a": 1, "b": "two"}', b"[[[["):
            publisher.send('{"a": 1, "b": 2}')
            publisher.send(bad)
        publisher.send(b"")
        publisher.send('{"b": 2, "a": 1}')
        read.wait(6)
    assert read.items == [[1, 2]] * 6
    known = [1, None, None, 1, None]
    assert read.gaps == [(place, Gap("invalid", items)) for place, items in enumerate(known, 1)]
    assert "'b' is missing" in read.source.notes[0]


def test_numbers_and_moments_tell_what_is_missing(broker, publisher):
    with reading(broker.uri, ROWS) as read:
        subscribed(read)
        for seq in (0, 1, 4):
            publisher.send(json.dumps({"a": seq, "b": -seq, "seq": seq}))
        for place in (5, 8):
            publisher.send(json.dumps({"a": place, "b": -place, "time": 100 + place / 50}))
        read.wait(5)
    assert read.gaps == [(2, Gap("missing", 2)), (4, Gap("missing", 2, 0.04))]


def test_retained_messages_are_left_out(broker, publisher):
    publisher.send("[7, 7]", retain=True)
    with reading(broker.uri, ROWS) as read:
        subscribed(read)
        publisher.send("[1, 2]", retain=True)
        publisher.send("[3, 4]")
        read.wait(2)
    assert read.items == [[1, 2], [3, 4]]


def test_a_broker_that_is_killed_and_comes_back(broker):
    with reading(broker.uri, ROWS) as read:
        subscribed(read)
        for start in (0, 10, 20):
            publisher = Publisher(broker.port)
            if start:
                # nobody hears what is sent before the subscription is there again
                read.until(lambda: read.source._receiver._lost_at is None)
            for place in range(start, start + 10):
                row = rows(place, 1)[0].tolist()
                publisher.send(json.dumps({"x": row, "seq": place + start}))
            read.wait(start + 10)
            publisher.close()
            lost = read.source._receiver
            broker.kill()
            read.until(lambda lost=lost: lost._lost_at is not None)
            broker.start()
    np.testing.assert_array_equal(read.items, rows(0, 30))
    found = [(place, gap.reason, gap.items) for place, gap in read.gaps]
    expected = [
        (10, "disconnected", None),
        (10, "missing", 10),
        (20, "disconnected", None),
        (20, "missing", 10),
    ]
    assert found == expected
    assert all(gap.seconds > 0 for _, gap in read.gaps if gap.reason == "disconnected")


def test_a_session_that_the_broker_keeps_loses_nothing(tmp_path):
    broker = Broker(tmp_path, "persistence true", f"persistence_location {tmp_path}/", "autosave_interval 1")
    broker.start()
    publisher = Publisher(broker.port)
    try:
        with reading(f"{broker.uri}?client=reader", ROWS) as read:
            subscribed(read)
            publisher.send("[1, 2]")
            read.wait(1)
        for place in range(2, 50):
            publisher.send(json.dumps([place, 0]))
        with reading(f"{broker.uri}?client=reader", ROWS) as read:
            read.wait(48)
        assert [row[0] for row in read.items] == [*range(2, 50)]
    finally:
        publisher.close()
        broker.kill()


@pytest.mark.parametrize("version", [5, 3])
def test_what_the_broker_held_back_comes_after_the_gap(broker, publisher, version):
    with reading(f"{broker.uri}?client=reader&version={version}", ROWS) as read:
        subscribed(read)
        publisher.send("[1, 2]")
        read.wait(1)
        time.sleep(0.2)  # until the broker knows that it has come
        receiver = read.source._receiver
        receiver._client.socket().shutdown(socket.SHUT_RDWR)
        read.until(lambda: receiver._lost_at is not None)
        for place in range(2, 50):
            publisher.send(json.dumps([place, 0]))
        read.wait(49)
    assert [row[0] for row in read.items] == [*range(1, 50)]
    assert [(place, gap.reason) for place, gap in read.gaps] == [(1, "disconnected")]


def test_a_message_that_is_sent_again_is_taken_once(broker):
    def message(payload: bytes, dup: bool) -> SimpleNamespace:
        return SimpleNamespace(payload=payload, mid=7, dup=dup)

    with reading(broker.uri, ROWS) as read:
        subscribed(read)
        receiver = read.source._receiver
        # the third has the number of the first, but was not there before
        for payload, dup in ((b"[1, 2]", False), (b"[1, 2]", True), (b"[3, 4]", True), (b"[5, 6]", False)):
            receiver._take(message(payload, dup))
        read.wait(3)
    assert read.items == [[1, 2], [3, 4], [5, 6]]
    assert receiver._intake.repeated == 1


@pytest.mark.parametrize("version", [5, 3])
def test_a_message_of_100_megabytes(broker, publisher, version):
    huge = b"[" + b"1," * 50_000_000 + b"1]"
    with reading(f"{broker.uri}?version={version}", ROWS) as read:
        subscribed(read)
        publisher.send(json.dumps({"x": [1, 2], "seq": 1}))
        publisher.send(huge)
        publisher.send(json.dumps({"x": [3, 4], "seq": 3}))
        read.wait(2)
    assert read.items == [[1, 2], [3, 4]]
    if version == 3:  # it comes, and is left out; the number tells how much it was
        assert read.gaps == [(1, Gap("invalid")), (1, Gap("missing", 1))]
        assert "100000003 bytes; --max-message is 1048576" in read.source.notes[0]
    else:  # the broker keeps it back
        assert read.gaps == [(1, Gap("missing", 1))]


@pytest.mark.parametrize("policy", ["block", "drop-oldest", "spill"])
def test_a_slow_reader(broker, publisher, policy):
    count = 3000
    gate = threading.Event()
    gate.set()
    queue = Queue(items=100, policy=policy)
    with reading(broker.uri, ROWS, gate, queue=queue) as read:
        subscribed(read)
        publisher.send(json.dumps(rows(0, 1).tolist()))
        read.wait(1)
        gate.clear()
        for place in range(1, count, 10):
            publisher.send(json.dumps(rows(place, 10).tolist()))
        inbox = read.source.inbox
        if policy != "block":
            read.until(lambda: inbox.accepted >= count)
        gate.set()
        read.until(lambda: bool(read.items) and read.items[-1][0] >= count)
    numbers = [int(row[0]) for row in read.items]
    dropped = sum(gap.items for _, gap in read.gaps)
    assert {gap.reason for _, gap in read.gaps} <= {"dropped"}
    assert len(numbers) + dropped == count + 1
    if policy == "drop-oldest":
        assert dropped == inbox.dropped > 0
        assert inbox.high_water <= 100
    else:
        assert numbers == [*range(count + 1)]
        assert (inbox.spilled > 0) == (policy == "spill")


def test_another_stream_is_not_disturbed(broker, publisher):
    """Garbage, a huge message and a slow reader on one topic, good rows on another."""
    other = Publisher(broker.port, "sensors/b")
    gate = threading.Event()
    try:
        with (
            reading(broker.uri, ROWS, gate, queue=Queue(items=10, policy="drop-oldest")),
            reading(broker.uri.replace("/a", "/b"), ROWS) as good,
        ):
            gate.set()
            subscribed(good)
            gate.clear()
            for place in range(0, 200, 10):
                publisher.send(b"\xff" * 1000)
                publisher.send(json.dumps(rows(place, 10).tolist()))
                other.send(json.dumps(rows(place, 10).tolist()))
            good.wait(200)
            gate.set()
        np.testing.assert_array_equal(good.items, rows(0, 200))
        assert good.gaps == []
    finally:
        other.close()


def test_a_broker_that_hangs(broker, publisher, monkeypatch):
    monkeypatch.setattr(mqtt, "_KEEP_ALIVE", 1)
    with reading(broker.uri, ROWS) as read:
        subscribed(read)
        publisher.send("[1, 2]")
        read.wait(1)
        broker.pause()
        read.until(lambda: read.source._receiver._lost_at is not None)
        broker.go_on()
        read.until(lambda: read.source._receiver._lost_at is None)
        publisher.send("[3, 4]")
        read.wait(2)
    ((place, gap),) = read.gaps
    assert (place, gap.reason, gap.items) == (1, "disconnected", None)


def test_what_cannot_be_reached():
    began = time.monotonic()
    with reading(f"mqtt://127.0.0.1:{free_port()}/a", ROWS) as read:
        read.wait_end()
    assert "cannot be reached" in str(read.error)
    assert time.monotonic() - began < 5


def test_a_broker_that_never_answers(monkeypatch):
    import socket

    monkeypatch.setattr(mqtt, "_OPEN_TIMEOUT", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"mqtt://127.0.0.1:{silent.getsockname()[1]}/a"
        with reading(uri, ROWS) as read:
            read.wait_end()
    assert "has not let us in for 0.3 s" in str(read.error)


@pytest.mark.parametrize("version", [5, 3])
def test_a_password(tmp_path, version):
    import shutil
    import subprocess

    tool = shutil.which("mosquitto_passwd")
    if tool is None:
        pytest.skip("there is no mosquitto_passwd on this machine; it comes with mosquitto")
    passwords = tmp_path / "passwords"
    subprocess.run([tool, "-b", "-c", str(passwords), "me", "me"], check=True, capture_output=True)
    passwords.chmod(0o644)
    broker = Broker(tmp_path, f"password_file {passwords}", "user root", anonymous=False)
    broker.start()
    uri = broker.uri.replace("//", "//me:{}@") + f"?version={version}"
    publisher = Publisher(broker.port, user="me")
    try:
        with reading(uri.format("me"), ROWS) as read:
            subscribed(read)
            publisher.send("[1, 2]")
            read.wait(1)
        assert "me" not in read.source.name
        with reading(uri.format("wrong%2F"), ROWS) as read:
            read.wait_end()
        assert "the broker refuses" in str(read.error)
        assert "wrong" not in str(read.error)
    finally:
        publisher.close()
        broker.kill()


def test_certificates(tmp_path, monkeypatch):
    made, key = make_certificate(tmp_path)
    broker = Broker(tmp_path, f"certfile {made}", f"keyfile {key}", "user root")
    broker.start()
    uri = broker.uri.replace("mqtt:", "mqtts:")
    try:
        with reading(uri, ROWS) as read:
            read.wait_end()
        assert "certificate is not trusted" in str(read.error)
        monkeypatch.setenv("SSL_CERT_FILE", str(made))
        with reading(uri, ROWS) as read:
            subscribed(read)
    finally:
        broker.kill()


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("mqtt://host", "needs a host and a topic"),
        ("mqtt:///topic", "needs a host and a topic"),
        ("mqtt://host:x/topic", "address: Port"),
        ("mqtt://host/a/#", "names many topics"),
        ("mqtt://host/a?qos=3", "known are qos=0, 1 or 2"),
        ("mqtt://host/a?retain=1", "known are qos=0, 1 or 2"),
    ],
)
def test_bad_addresses(uri, message):
    with pytest.raises(UsageError, match=message):
        open_source(uri, Request(ROWS))


def test_addresses():
    address = mqtt.parse("mqtts://me:a%40b@host/a%20b/c?client=x")
    assert (address.port, address.topic, address.user, address.password) == (8883, "a b/c", "me", "a@b")
    assert address.name == "mqtts://host:8883/a b/c"
    assert mqtt.parse("mqtt://[::1]:99/t").host == "::1"


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "paho.mqtt.client", None)
    with pytest.raises(SourceError, match=r"pip install 'streamssm\[live\]'"):
        open_source("mqtt://host/a", Request(ROWS))
