"""Who is answered, and what the others are told."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec
from aiohttp import web

if TYPE_CHECKING:
    from streamssm.serving.settings import Settings

_RETRY_AFTER = 2  # seconds


class Refusal(Exception):  # noqa: N818 (it is an answer)
    """An answer other than the one that was hoped for; ``headers`` are written with _ for -."""

    def __init__(self, status: int, error: str, message: str, **headers: str):
        super().__init__(message)
        self.status, self.error = status, error
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}

    def response(self) -> web.Response:
        """The same for HTTP."""
        return json_response({"error": self.error, "message": str(self)}, self.status, self.headers)


def json_response(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """Plain data as an answer."""
    data = msgspec.json.encode(body) + b"\n"
    return web.Response(body=data, status=status, content_type="application/json", headers=headers)


def busy(message: str) -> Refusal:
    """Not now."""
    return Refusal(503, "PoolFullError", message, Retry_After=str(_RETRY_AFTER))


def check_host(request: web.Request, settings: Settings) -> None:
    """Refuse what a page from elsewhere asks for: by its origin, and, where only this machine is served, by
    the name under which it reached us, which anyone may point here.

    Raises:
        Refusal: 403.
    """
    origin = request.headers.get("Origin")
    ours = origin is None or origin in settings.origins or _part(origin, "netloc") == request.host
    if not ours:
        raise Refusal(403, "OriginRefused", f"pages of {origin} may not use this server; see --origin")
    host = _part(f"//{request.host}", "hostname")
    known = {_part(address, "hostname") for address in settings.origins}
    if settings.loopback and host not in known and not _is_local(host):
        raise Refusal(403, "HostRefused", f"this server is reached as localhost, not as {host}")


def check_token(request: web.Request, settings: Settings) -> None:
    """Refuse who does not know the token.

    Raises:
        Refusal: 401.
    """
    if settings.token is None:
        return
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        given = request.query.get("token", "")
    # the time that it takes says nothing of the token
    if not hmac.compare_digest(_bytes(given), _bytes(settings.token)):
        wanted = "this server wants a token: Authorization: Bearer TOKEN, or ?token=TOKEN"
        raise Refusal(
            401,
            "Unauthorized",
            "the token is not that of this server" if given else wanted,
            WWW_Authenticate='Bearer realm="streamssm"',
        )


def _bytes(token: str) -> bytes:
    return token.strip().encode(errors="surrogateescape")  # a header may hold anything


def _part(address: str, name: str) -> str:
    try:
        return getattr(urlsplit(address), name) or ""
    except ValueError:
        return ""


def _is_local(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
