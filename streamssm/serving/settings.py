"""What a server is told when it starts, and what it refuses to start with."""

from __future__ import annotations

import ipaddress
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from streamssm.errors import UsageError


@dataclass(frozen=True)
class Settings:
    """Times are seconds, sizes bytes; ``blocks`` gives items a step by model, where not the model's own.

    Raises:
        UsageError: they contradict each other, or would open the server to a network unprotected.
    """

    host: str = "127.0.0.1"
    port: int = 8765
    slots: int = 64
    blocks: Mapping[str, int] = field(default_factory=dict)
    gather: float = 0.002
    token: str | None = field(default=None, repr=False)
    cert: Path | None = None
    key: Path | None = None
    insecure: bool = False
    origins: tuple[str, ...] = ()
    max_message: int = 1 << 20
    idle_timeout: float = 60.0
    header_timeout: float = 10.0
    send_timeout: float = 10.0
    drain_timeout: float = 10.0
    backlog: int = 1024
    max_connections: int = 4096

    def __post_init__(self) -> None:
        if self.token is not None and not self.token.strip():
            raise UsageError("the token is empty; give one that nobody guesses: openssl rand -hex 16")
        if (self.cert is None) != (self.key is None):
            raise UsageError("--cert and --key belong together; give both, or neither")
        if not self.insecure and not self.loopback:
            self._require_protection()

    @cached_property
    def loopback(self) -> bool:
        """Whether only this machine can connect."""
        try:
            found = socket.getaddrinfo(self.host, None, type=socket.SOCK_STREAM)
        except OSError as error:
            raise UsageError(f"--host {self.host} is no address of this machine: {error}") from error
        return all(ipaddress.ip_address(entry[4][0]).is_loopback for entry in found)

    def _require_protection(self) -> None:
        missing = [
            name
            for name, given in (("--token-file", self.token), ("--cert and --key", self.cert))
            if not given
        ]
        if missing:
            raise UsageError(
                f"--host {self.host} can be reached from other machines; give {' and '.join(missing)}, or "
                "say --insecure if something in front of it checks who comes and encrypts"
            )

    def ssl_context(self) -> ssl.SSLContext | None:
        """TLS, if there is a certificate.

        Raises:
            UsageError: it cannot be read, or the key does not belong to it.
        """
        if self.cert is None:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(self.cert, self.key)
        except (OSError, ssl.SSLError) as error:
            raise UsageError(
                f"--cert {self.cert} and --key {self.key} cannot be used: {error.strerror or error}; "
                "give PEM files that belong together, the key without a passphrase"
            ) from error
        return context
