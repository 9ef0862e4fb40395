"""``mqtt://[USER:PASSWORD@]HOST[:PORT]/TOPIC`` and ``mqtts://``: rows of numbers from a broker.

A message is JSON, or frames of ``--input-format``. After a ``?`` may stand ``qos=0``, ``1`` (default) or
``2``, ``client=NAME`` for a session that the broker keeps, so that it holds messages back while the
connection is away, and ``version=3`` or ``5`` (default: 5, and 3.1.1 where the broker knows no other).

Retained messages are left out: a broker repeats them to every subscriber, and they are of an unknown
time. Brokers of MQTT 5 do not deliver messages beyond ``--max-message`` and say nothing of it, so that
only ``"seq"`` or ``"time"`` show the gap; those of 3.1.1 do, and they are left out here.
"""

from __future__ import annotations

import ssl
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from streamssm.errors import SourceError, UsageError
from streamssm.live.connection import Connection, LostError
from streamssm.live.intake import Intake
from streamssm.live.opening import open_messages
from streamssm.sources.base import Request, Source

_OPEN_TIMEOUT = 10.0  # seconds until a broker must have let us in
_KEEP_ALIVE = 30  # seconds without traffic before the broker is asked whether it is there
_TICK = 0.5  # seconds between looks at whether to stop
_HEADER = 64 * 1024 + 16  # bytes of a packet beside its payload: at most a topic of 64 KiB
_RECENT = 64  # messages that a broker may send again; it waits for 20 answers at a time, unless told more
_KEPT = 24 * 3600  # seconds that a broker is to keep a named session
_PORTS = {"mqtt": 1883, "mqtts": 8883}
_UNKNOWN_VERSION = 132
# reasons of the broker that no further attempt will change: client name, password, rights, banned, login
_FOR_GOOD = (133, 134, 135, 138, 140)


@dataclass(frozen=True)
class Address:
    """What the URI says."""

    host: str
    port: int
    topic: str
    secure: bool
    user: str | None
    password: str | None
    qos: int
    client: str
    version: int | None

    @property
    def name(self) -> str:
        """The address without the password."""
        return f"mqtt{'s' * self.secure}://{self.host}:{self.port}/{self.topic}"


def parse(uri: str) -> Address:
    """The parts of a URI; ``#`` has no meaning of its own here.

    Raises:
        UsageError: a part is missing, or an option is unknown or out of range.
    """
    scheme, _, rest = uri.partition("://")
    authority, _, path = rest.partition("/")
    topic, _, query = path.partition("?")
    try:
        parts = urlsplit(f"//{authority}")
        host, port = parts.hostname, parts.port
        options = {key: values[-1] for key, values in parse_qs(query, strict_parsing=bool(query)).items()}
    except ValueError as error:
        raise UsageError(f"{scheme}:// address: {error}") from error
    topic = unquote(topic)
    if not host or not topic:
        raise UsageError(f"{scheme}:// needs a host and a topic; write {scheme}://HOST:PORT/TOPIC")
    if "+" in topic or "#" in topic:
        raise UsageError(f"{topic} names many topics, but one stream is one sequence; name one topic")
    unknown = sorted(set(options) - {"qos", "client", "version"})
    if unknown or options.get("qos", "0") not in "012" or options.get("version", "5") not in "35":
        raise UsageError(f"?{query}: known are qos=0, 1 or 2, client=NAME and version=3 or 5")
    return Address(
        host,
        port or _PORTS[scheme],
        topic,
        scheme == "mqtts",
        None if parts.username is None else unquote(parts.username),
        None if parts.password is None else unquote(parts.password),
        int(options.get("qos", "1")),
        options.get("client", ""),
        int(options["version"]) if "version" in options else None,
    )


class MqttConnection(Connection):
    """Receives one topic. Everything happens in the connection's own thread."""

    def __init__(self, address: Address, intake: Intake, reconnect: int | None, largest: int):
        super().__init__(intake.name, intake.inbox, reconnect)
        self._address, self._intake, self._largest = address, intake, largest
        self._library = _library(intake.name)
        self._version = address.version or 5
        self._found: Exception | None = None  # by a callback, for the session to raise
        self._there = False  # subscribed
        self._client: Any = None
        self._recent: deque[tuple[int, int]] = deque(maxlen=_RECENT)  # numbers and hashes of messages

    def session(self) -> None:
        """Connect, subscribe and receive."""
        self._found, self._there = None, False
        client = self._client = self._made()
        limit = time.monotonic() + _OPEN_TIMEOUT
        try:
            self._open(client)
            while not self.stopping.is_set():
                code = client.loop(_TICK)
                if self._found is not None:
                    raise self._found
                if code:
                    raise LostError(str(self._library.error_string(code)))
                if not self._there and time.monotonic() > limit:
                    raise LostError(f"the broker has not let us in for {_OPEN_TIMEOUT:g} s")
        finally:
            with suppress(Exception):
                client.disconnect()
            self._close(client)
            self._client = None

    def hang_up(self) -> None:
        """Say goodbye, which also wakes the session."""
        client = self._client
        if client is not None:
            with suppress(Exception):
                client.disconnect()

    def _made(self) -> Any:
        address, library = self._address, self._library
        newest = self._version == 5
        options = {} if newest else {"clean_session": not address.client}
        client = library.Client(
            library.CallbackAPIVersion.VERSION2,
            client_id=address.client,
            protocol=library.MQTTv5 if newest else library.MQTTv311,
            reconnect_on_failure=False,
            **options,
        )
        client.connect_timeout = _OPEN_TIMEOUT
        client.on_connect, client.on_subscribe = self._on_connect, self._on_subscribe
        client.on_message, client.on_disconnect = self._on_message, self._on_disconnect
        if address.user is not None:
            client.username_pw_set(address.user, address.password)
        if address.secure:
            client.tls_set_context(ssl.create_default_context())
        return client

    def _open(self, client: Any) -> None:
        address = self._address
        try:
            client.connect(address.host, address.port, _KEEP_ALIVE, **self._options())
        except ssl.SSLCertVerificationError as error:
            raise SourceError(
                f"{self.name}: the broker's certificate is not trusted: {error.verify_message}; name the "
                "file of its authority in SSL_CERT_FILE"
            ) from error
        except OSError as error:
            raise LostError(error.strerror or str(error) or type(error).__name__) from error

    def _options(self) -> dict[str, Any]:
        """What MQTT 5 adds to a connection."""
        if self._version != 5:
            return {}
        properties = import_module("paho.mqtt.properties").Properties
        said = properties(import_module("paho.mqtt.packettypes").PacketTypes.CONNECT)
        said.MaximumPacketSize = self._largest + _HEADER
        if self._address.client:
            said.SessionExpiryInterval = _KEPT
        return {"clean_start": not self._address.client, "properties": said}

    def _close(self, client: Any) -> None:
        """Let go of the socket: the library keeps it until the client is collected."""
        socket = client.socket()
        if socket is not None:
            with suppress(OSError):
                socket.close()

    def _on_connect(self, client: Any, data: Any, flags: Any, reason: Any, properties: Any) -> None:
        if not reason.is_failure:
            client.subscribe(self._address.topic, self._address.qos)
        elif reason.value == _UNKNOWN_VERSION and self._version == 5 and self._address.version is None:
            self._version = 3
            self._found = LostError("the broker knows no MQTT 5; 3.1.1 is tried")
        elif reason.value in _FOR_GOOD:
            self._found = SourceError(
                f"{self.name}: the broker refuses: {reason}; check user, password and client"
            )
        else:
            self._found = LostError(f"the broker refuses: {reason}")

    def _on_subscribe(self, client: Any, data: Any, number: int, reasons: Any, properties: Any) -> None:
        if reasons[0].is_failure:
            self._found = SourceError(
                f"{self.name}: the broker refuses the topic: {reasons[0]}; check its rights"
            )
            return
        self._there = True
        self.connected()

    def _on_disconnect(self, client: Any, data: Any, flags: Any, reason: Any, properties: Any) -> None:
        if self._found is None:
            self._found = LostError(str(reason))

    def _on_message(self, client: Any, data: Any, message: Any) -> None:
        if message.retain:
            return
        try:
            self._take(message)
        except Exception as error:  # the library would log it and go on
            self._found = error

    def _take(self, message: Any) -> None:
        now = time.perf_counter()
        if not self._there:  # held back for us: it comes before the broker answers to the subscription
            self.connected()
        self.alive()
        key = (message.mid, hash(message.payload))
        if message.dup and key in self._recent:  # the broker never saw that it had come
            self._intake.repeated += 1
            return
        self._recent.append(key)
        if len(message.payload) > self._largest:
            self._intake.bad(f"it has {len(message.payload)} bytes; --max-message is {self._largest}")
        elif encoding := self._intake.reader.binary:
            self._intake.take_binary(message.payload, encoding, now)
        else:
            self._intake.take_json(message.payload, now, again=message.dup)


def open_mqtt(uri: str, request: Request) -> Source:
    """The source of ``mqtt://HOST[:PORT]/TOPIC`` or ``mqtts://``.

    Raises:
        SourceError: the data do not fit the model, or paho-mqtt is missing.
        UsageError: the address is none.
    """
    address = parse(uri)
    return open_messages(
        address.name,
        request,
        lambda intake: MqttConnection(address, intake, request.reconnect, request.max_message),
    )


def _library(name: str) -> Any:
    try:
        return import_module("paho.mqtt.client")
    except ImportError as error:
        raise SourceError(f"{name} needs paho-mqtt; pip install 'streamssm[live]'") from error
