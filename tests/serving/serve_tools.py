"""A server in this process, and a client that says anything to it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import numpy as np

from streamssm.outputs import by_name
from streamssm.rows import make_rows
from streamssm.serving.app import Server
from streamssm.serving.settings import Settings

Row = dict[str, Any]
PATIENCE = 20.0  # seconds; nothing here takes so long


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    """Run a test's coroutine to its end."""
    asyncio.run(asyncio.wait_for(scenario(), 2 * PATIENCE))


@contextlib.asynccontextmanager
async def served(models, *names: str, **options: Any) -> AsyncIterator[Server]:
    """A server of some of the models on any free port."""
    chosen = {name: models[name] for name in names or ("voice",)}
    options = {"port": 0, "gather": 0.001, "slots": 8, **options}
    async with Server(chosen, Settings(**options)) as server:
        yield server


class Talk:
    """A websocket, with everything that came over it."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse):
        self.socket = socket
        self.messages: list[Row] = []
        self.code: int | None = None

    @property
    def rows(self) -> list[Row]:
        return [{k: v for k, v in m.items() if k != "type"} for m in self.messages if m["type"] == "row"]

    def of(self, kind: str) -> list[Row]:
        return [message for message in self.messages if message["type"] == kind]

    async def say(self, kind: str, **fields: Any) -> None:
        await self.socket.send_str(json.dumps({"type": kind, **fields}))

    async def ask(self, kind: str, answer: str, **fields: Any) -> Row:
        await self.say(kind, **fields)
        return await self.until(answer)

    async def send(self, x: np.ndarray, cuts=()) -> None:
        for part in np.split(x, cuts):
            await self.socket.send_bytes(np.ascontiguousarray(part).tobytes())

    async def hear(self) -> Row | None:
        message = await self.socket.receive(PATIENCE)
        if message.type is aiohttp.WSMsgType.BINARY:
            self.messages.append({"type": "binary", "data": message.data})
        elif message.type is aiohttp.WSMsgType.TEXT:
            self.messages.append(json.loads(message.data))
        else:
            self.code = self.socket.close_code
            return None
        return self.messages[-1]

    async def until(self, kind: str) -> Row:
        while (message := await self.hear()) is not None:
            if message["type"] == kind:
                return message
        raise AssertionError(f"closed with {self.code} before {kind!r}: {self.messages[-3:]}")

    async def end(self) -> list[Row]:
        """Say eof; all rows."""
        await self.say("eof")
        return await self.rest()

    async def rest(self) -> list[Row]:
        """Everything up to the close frame."""
        while await self.hear() is not None:
            pass
        return self.rows


@contextlib.asynccontextmanager
async def talking(server: Server, token: str | None = None, **query: Any) -> AsyncIterator[Talk]:
    """An open stream, after ``ready``."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.ws_connect(server.url + "v1/stream", params=query, max_msg_size=0) as socket,
    ):
        talk = Talk(socket)
        await talk.until("ready")
        yield talk


async def get(server: Server, path: str, **headers: str) -> tuple[int, Any, Any]:
    """Status, headers and body of a plain request."""
    async with (
        aiohttp.ClientSession() as session,
        session.get(server.url + path, headers=headers) as response,
    ):
        body = await response.read()
        return response.status, response.headers, json.loads(body) if body[:1] == b"{" else body


def expected(model, x: np.ndarray, emit: str | None = None, block: int | None = None) -> list[Row]:
    """The rows of a stream alone."""
    stream, rows = model.stream(block), make_rows(model.manifest, emit)
    found = rows.push(by_name(model.manifest, stream.push(x)))
    return [*found, *rows.push(by_name(model.manifest, stream.flush())), *rows.flush()]


def voice(seconds: float = 3.0) -> np.ndarray:
    """Samples for the voice toy."""
    from voice_toy import recording

    return recording(seconds).astype(np.float32) / np.float32(32768)
