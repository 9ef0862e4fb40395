"""Clients of a server: those that speak, those that are silent, those that dawdle. Each kind runs in a
process of its own, so that none measures another's work.

    python -m crowd.clients speak HOST PORT COUNT SECONDS      prints a JSON summary
    python -m crowd.clients idle HOST PORT COUNT               until its standard input ends
    python -m crowd.clients slowloris HOST PORT COUNT          the same
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

import aiohttp
import numpy as np

BLOCK, RATE = 160, 16_000
LASTS = BLOCK / RATE


def speech(seconds: float) -> bytes:
    """Something to say, as float32."""
    import wave

    path = Path(__file__).resolve().parents[2] / "examples" / "audio" / "speech.wav"
    with wave.open(str(path)) as file:
        samples = np.frombuffer(file.readframes(int(seconds * RATE)), "<i2")
    samples = np.resize(samples, int(seconds * RATE))
    return (samples.astype("<f4") / np.float32(32768)).tobytes()


class Speaker:
    """Sends a hop when it is due and notes when its result is there."""

    def __init__(self, said: bytes, began: float):
        self.said, self.began = said, began
        self.latencies: list[float] = []
        self.refused = self.lost = 0

    async def talk(self, session: aiohttp.ClientSession, url: str) -> None:
        try:
            async with session.ws_connect(url, max_msg_size=0) as socket:
                await asyncio.gather(self._speak(socket), self._listen(socket))
        except aiohttp.WSServerHandshakeError as error:
            self.refused += error.status == 503
            self.lost += error.status != 503
        except (aiohttp.ClientError, ConnectionError):
            self.lost += 1

    async def _speak(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        size = 4 * BLOCK
        for hop in range(len(self.said) // size):
            wait = self.began + (hop + 1) * LASTS - time.perf_counter()
            if wait > 0:
                await asyncio.sleep(wait)
            await socket.send_bytes(self.said[hop * size : (hop + 1) * size])
        await socket.send_str('{"type": "eof"}')

    async def _listen(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        async for message in socket:
            now = time.perf_counter()
            answer = json.loads(message.data)
            if answer["type"] == "levels":  # of a hop, or of several that were ready together
                first = answer["start"] + 1
                hops = range(first, first + len(answer["values"]))
                self.latencies += [now - self.began - hop * LASTS for hop in hops]


async def speak(host: str, port: int, count: int, seconds: float) -> dict[str, float]:
    """Latencies are from when the last sample of a hop was due to when its level is there; the first
    second, in which all connect, is left out."""
    said, rng = speech(seconds), np.random.default_rng(0)
    url = f"http://{host}:{port}/v1/stream?emit=none&levels=1"
    began = time.perf_counter() + 0.5 + count / 500
    speakers = [Speaker(said, began + float(phase)) for phase in rng.uniform(0, LASTS, count)]
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        await asyncio.gather(*(speaker.talk(session, url) for speaker in speakers))
    heard = [s.latencies[int(1 / LASTS) :] for s in speakers if s.latencies]
    late = np.concatenate(heard) if heard else np.array([np.inf])
    whole = len(said) // (4 * BLOCK)
    return {
        "clients": count,
        "admitted": len(heard),
        "refused": sum(s.refused for s in speakers),
        "lost": sum(s.lost for s in speakers),
        "incomplete": sum(0 < len(s.latencies) < whole for s in speakers),
        "p50_ms": float(np.quantile(late, 0.5)) * 1e3,
        "p99_ms": float(np.quantile(late, 0.99)) * 1e3,
        "max_ms": float(late.max()) * 1e3,
        "missed": float((late > LASTS + 0.010).mean()),
    }


async def idle(host: str, port: int, count: int) -> None:
    """Connections that are streams, of which nothing comes."""
    url = f"http://{host}:{port}/v1/stream?emit=none"
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        sockets = [await session.ws_connect(url) for _ in range(count)]
        await _until_told(len(sockets))


async def slowloris(host: str, port: int, count: int) -> None:
    """Requests that never end: a byte a second, and a new connection for each that is closed."""

    async def dawdle() -> None:
        while True:
            try:
                _, writer = await asyncio.open_connection(host, port)
                writer.write(b"GET /v1/stream HTTP/1.1\r\nHost: a\r\nX: ")
                while True:
                    writer.write(b"a")
                    await writer.drain()
                    await asyncio.sleep(1)
            except OSError:
                await asyncio.sleep(0.1)

    tasks = [asyncio.create_task(dawdle()) for _ in range(count)]
    await asyncio.sleep(1)
    await _until_told(count)
    for task in tasks:
        task.cancel()


async def _until_told(count: int) -> None:
    print(json.dumps({"connected": count}), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


def main() -> None:
    kind, host, port, count, *rest = sys.argv[1:]
    if kind == "speak":
        print(json.dumps(asyncio.run(speak(host, int(port), int(count), float(rest[0])))))
    else:
        asyncio.run({"idle": idle, "slowloris": slowloris}[kind](host, int(port), int(count)))


if __name__ == "__main__":
    main()
