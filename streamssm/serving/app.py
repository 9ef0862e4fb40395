"""The server: routes, who is let in, and how it starts and stops."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiohttp import web

from streamssm.errors import PoolFullError, ServerError, StreamSSMError
from streamssm.serving import wire
from streamssm.serving.access import Refusal, busy, check_host, check_token, json_response
from streamssm.serving.endings import DRAINED, IDLE, SLOW
from streamssm.serving.guard import Door
from streamssm.serving.metrics import CONTENT_TYPE, Metrics
from streamssm.serving.pages import HEADERS, read_pages
from streamssm.serving.session import Session
from streamssm.serving.shown import emits

if TYPE_CHECKING:
    from streamssm.aio import AsyncPool
    from streamssm.model import Model
    from streamssm.serving.settings import Settings

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_log = logging.getLogger("streamssm.serve")
_CLOSE_TIMEOUT = 2.0  # seconds that a client has to answer a close frame
_HANDSHAKE = 10.0  # seconds for TLS


@dataclass(frozen=True)
class Offer:
    """A model that is served under a name, and the pool of its streams."""

    name: str
    model: Model
    pool: AsyncPool


class Server:
    """Serves models by name; to be entered with ``async with``, which starts it, and on leaving drains it.

    Raises:
        ServerError: the address cannot be used.
        UsageError: a block does not fit its model.
    """

    def __init__(self, models: Mapping[str, Model], settings: Settings):
        self.settings, self.metrics = settings, Metrics(self._update_gauges)
        self.port = settings.port
        self._models = dict(models)
        self._offers: dict[str, Offer] = {}
        self._sessions: set[Session] = set()
        self._pages = read_pages()
        self._draining = False
        self._tls = settings.ssl_context()
        self._runner: web.AppRunner | None = None
        self._door: Door | None = None
        self._listener: asyncio.Server | None = None
        self._janitor: asyncio.Task[None] | None = None
        states = max((model.manifest.state_bytes for model in models.values()), default=0)
        self._max_message = max(settings.max_message, 2 * states + (1 << 18))  # a snapshot must fit

    @property
    def url(self) -> str:
        """Where it is to be found."""
        host = self.settings.host
        scheme = "http" if self._tls is None else "https"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self.port}/"

    @property
    def blocks(self) -> dict[str, int]:
        """Items a step by model."""
        return {name: offer.pool.block for name, offer in self._offers.items()}

    async def __aenter__(self) -> Server:
        try:
            for name, model in self._models.items():
                await self._offer_model(name, model)
            await self._listen()
        except BaseException:
            await self._close_pools()
            raise
        self._janitor = asyncio.create_task(self._tidy())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.drain()
        assert self._runner is not None  # it was started
        assert self._door is not None
        if self._janitor is not None:
            self._janitor.cancel()
        self._door.abort_all()
        await self._runner.cleanup()
        await self._close_pools()

    async def drain(self) -> None:
        """Take nobody new; flush every stream, send what that gives, close it with 1001."""
        if self._draining:
            return
        self._draining = True
        self.metrics.draining.set(1)
        if self._listener is not None:
            self._listener.close()
        for session in list(self._sessions):
            session.stop(DRAINED)
        until = time.monotonic() + self.settings.drain_timeout
        while self._sessions and time.monotonic() < until:
            await asyncio.sleep(0.01)

    async def _offer_model(self, name: str, model: Model) -> None:
        settings, step = self.settings, self.metrics.of(name).step
        block, slots = settings.blocks.get(name), settings.slots
        pool = model.async_pool(slots, block, gather=settings.gather, on_step=step)
        self._offers[name] = Offer(name, model, await pool.__aenter__())
        self.metrics.slots.labels(name).set(slots)

    async def _listen(self) -> None:
        app = web.Application(middlewares=[self._around], client_max_size=1 << 10)
        app.router.add_get("/", self._page)
        app.router.add_get("/static/{name}", self._page)
        app.router.add_get("/v1/models", self._list)
        app.router.add_get("/v1/stream", self._open_stream, allow_head=False)
        app.router.add_get("/healthz", self._health)
        app.router.add_get("/metrics", self._expose)
        settings = self.settings
        self._runner = web.AppRunner(
            app,
            access_log=None,
            logger=_Quiet(_log),
            keepalive_timeout=settings.header_timeout,
            lingering_time=1.0,
            shutdown_timeout=1.0,
        )
        await self._runner.setup()
        assert self._runner.server is not None  # it is set up
        self._door = Door(self._runner.server, settings.header_timeout, settings.max_connections)
        try:
            self._listener = await asyncio.get_running_loop().create_server(
                self._door,
                settings.host,
                settings.port,
                backlog=settings.backlog,
                ssl=self._tls,
                ssl_handshake_timeout=None if self._tls is None else _HANDSHAKE,
            )
        except OSError as error:
            await self._runner.cleanup()
            raise ServerError(
                f"{settings.host} port {settings.port} cannot be listened on: {error.strerror or error}; "
                "choose another --port, or 0 for any that is free"
            ) from error
        self.port = self._listener.sockets[0].getsockname()[1]

    async def _close_pools(self) -> None:
        for offer in self._offers.values():
            await offer.pool.__aexit__(None, None, None)

    # Around every request.

    @web.middleware
    async def _around(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        transport, door = request.transport, self._door
        assert door is not None  # it let the request in
        door.busy(transport)
        try:
            check_host(request, self.settings)
            response = await handler(request)
        except Refusal as refusal:
            response = refusal.response()
        except web.HTTPException as error:
            response = Refusal(error.status, "HTTPError", f"{request.path}: {error.reason}").response()
        except StreamSSMError as error:
            response = Refusal(400, type(error).__name__, str(error)).response()
        except (asyncio.CancelledError, ConnectionError):
            raise
        except Exception as error:
            _log.exception("a request failed")
            response = Refusal(500, type(error).__name__, "the server failed; its log says why").response()
        finally:
            door.idle(transport)
        if not response.prepared:
            response.headers.update(HEADERS)
        return response

    # What is asked for.

    async def _page(self, request: web.Request) -> web.Response:
        page = self._pages.get(request.match_info.get("name", "index.html"))
        if page is None:
            raise Refusal(404, "NotFound", f"there is no page {request.path}; see /v1/models")
        return web.Response(body=page.body, content_type=page.media_type, charset="utf-8")

    async def _list(self, request: web.Request) -> web.Response:
        check_token(request, self.settings)
        models = [
            wire.describe_model(offer.model, offer.pool.block)
            | {"name": name, "slots": offer.pool.slots, "free": offer.pool.free}
            for name, offer in self._offers.items()
        ]
        return json_response({"models": models})

    async def _health(self, _: web.Request) -> web.Response:
        if self._draining:
            raise Refusal(503, "Draining", "the server shuts down")
        failed = [name for name, offer in self._offers.items() if offer.pool.failed is not None]
        if failed:
            raise Refusal(500, "PoolFailed", f"the streams of {', '.join(failed)} are not stepped any more")
        return json_response({"status": "ok", "streams": len(self._sessions)})

    async def _expose(self, request: web.Request) -> web.Response:
        check_token(request, self.settings)
        return web.Response(body=self.metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    async def _open_stream(self, request: web.Request) -> web.StreamResponse:
        check_token(request, self.settings)
        try:
            return await self._serve_stream(request)
        except Refusal as refusal:
            self.metrics.refused[str(refusal.status)] += 1
            raise
        except StreamSSMError:
            self.metrics.refused["400"] += 1
            raise

    async def _serve_stream(self, request: web.Request) -> web.StreamResponse:
        asked = wire.parse_query(request.query)
        offer = self._offer(asked.model)
        emits(offer.model, asked)
        if self._draining:
            raise busy("the server shuts down")
        if offer.pool.failed is not None:
            raise Refusal(500, "PoolFailed", f"the streams of {offer.name} are not stepped any more")
        if not offer.pool.free:
            raise busy(f"all {offer.pool.slots} slots are taken; try again later")
        refused = self._max_message + 1  # aiohttp's limit is the first size that it does not take
        ws = web.WebSocketResponse(
            timeout=_CLOSE_TIMEOUT, autoping=False, compress=False, max_msg_size=refused
        )
        if not ws.can_prepare(request):
            raise Refusal(426, "UpgradeRequired", "this address speaks websocket only", Upgrade="websocket")
        name = secrets.token_hex(8)
        try:
            stream = await offer.pool.open(name)
        except PoolFullError as error:
            raise busy(str(error)) from error
        async with stream:
            session = Session(name, offer.name, ws, request.transport, stream, asked, self.metrics)
            await ws.prepare(request)
            await self._run(session)
        return ws

    async def _run(self, session: Session) -> None:
        settings, name = self.settings, session.served
        self._sessions.add(session)
        self.metrics.of(name).opened += 1
        reason = "aborted"
        try:
            if self._draining:
                session.stop(DRAINED)
            limits = {"max_message": self._max_message, "idle_timeout": settings.idle_timeout}
            ending = await session.run(limits)
            reason = ending.reason
            if ending.error is not None and not isinstance(ending.error, StreamSSMError):
                _log.error("stream %s failed", session.name, exc_info=ending.error)
        except ConnectionError:
            reason = "client gone"
        finally:
            self._sessions.discard(session)
            self.metrics.closed[name, reason] += 1

    def _offer(self, name: str | None) -> Offer:
        if name is None:
            if len(self._offers) == 1:
                return next(iter(self._offers.values()))
            raise Refusal(400, "UsageError", f"say which model: {', '.join(self._offers)}")
        if name not in self._offers:
            raise Refusal(404, "NotFound", f"there is no model {name!r}; there are {', '.join(self._offers)}")
        return self._offers[name]

    # Now and then.

    async def _tidy(self) -> None:
        """End sessions of clients that say nothing, and of those that do not take what they are sent."""
        settings = self.settings
        every = max(0.02, min(1.0, settings.idle_timeout / 4, settings.send_timeout / 4))
        while True:
            await asyncio.sleep(every)
            now = time.monotonic()
            for session in list(self._sessions):
                if session.sending is not None and now - session.sending > settings.send_timeout:
                    session.abort(SLOW)
                elif now - session.heard > settings.idle_timeout:
                    session.stop(IDLE)

    def _update_gauges(self) -> None:
        metrics, door = self.metrics, self._door
        for name, offer in self._offers.items():
            metrics.streams.labels(name).set(offer.pool.slots - offer.pool.free)
            waiting = sum(s.waiting for s in self._sessions if s.model is offer.model)
            metrics.waiting.labels(name).set(waiting)
        assert door is not None  # it let the request in
        metrics.connections.set(len(door))
        metrics.let_go, metrics.turned_away = door.let_go, door.turned_away


class _Quiet(logging.LoggerAdapter[logging.Logger]):
    """What aiohttp logs of broken requests is the client's affair: it is there for those who debug."""

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802 (the name is logging's)
        """As for debugging."""
        return super().isEnabledFor(logging.DEBUG)
