"""Tokens, pages from elsewhere, and settings that would open the server to anyone."""

from __future__ import annotations

import asyncio

import pytest
from serve_tools import get, run, served, talking

from streamssm.errors import ServerError, UsageError
from streamssm.serving.settings import Settings


async def ask_plainly(server, path: str, header: bytes) -> int:
    """The status of a request with a header as it is."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"GET /%s HTTP/1.1\r\nHost: localhost\r\n%s\r\n\r\n" % (path.encode(), header))
    status = int((await reader.readline()).split()[1])
    writer.close()
    return status


def test_a_token_opens(models):
    async def scenario():
        async with served(models, token="secret") as server:
            for path in ("v1/models", "v1/stream", "metrics"):
                for wrong in ({}, {"Authorization": "Bearer secre"}, {"Authorization": "Basic secret"}):
                    status, headers, body = await get(server, path, **wrong)
                    assert (status, body["error"]) == (401, "Unauthorized")
                    assert headers["WWW-Authenticate"].startswith("Bearer")
                assert (await get(server, path, Authorization="Bearer secret"))[0] in (200, 426)
                assert (await get(server, f"{path}?token=secret"))[0] in (200, 426)
                assert (await get(server, f"{path}?token=geheim%C3%9F"))[0] == 401
                assert await ask_plainly(server, path, b"Authorization: Bearer \xff\xfe") == 401
            for path in ("healthz", "nothing"):
                assert (await get(server, path))[0] in (200, 404)
            async with talking(server, token="secret") as talk:
                await talk.end()

    run(scenario)


def test_pages_from_elsewhere_are_refused(models):
    async def scenario():
        async with served(models, host="127.0.0.1") as server:
            here = f"http://localhost:{server.port}"
            for origin, status in ((here, 403), ("https://evil.example", 403), ("null", 403)):
                assert (await get(server, "v1/models", Origin=origin))[0] == status
            host = f"127.0.0.1:{server.port}"
            assert (await get(server, "v1/models", Origin=f"http://{host}"))[0] == 200
            for name, status in (("localhost", 200), ("evil.example", 403), ("[::1]:1", 200), ("[", 403)):
                assert (await get(server, "v1/models", Host=name))[0] == status
            assert (await get(server, "v1/models", Host="evil.example", Origin="http://evil.example"))[
                0
            ] == 403
        async with served(models, origins=("https://app.example",)) as server:
            assert (await get(server, "v1/models", Origin="https://app.example"))[0] == 200
            assert (await get(server, "v1/models", Origin="https://evil.example"))[0] == 403
            assert (await get(server, "v1/models", Host="app.example"))[0] == 200
            rebound = {"Host": "evil.example", "Origin": "http://evil.example"}
            assert (await get(server, "v1/models", **rebound))[0] == 403

    run(scenario)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"host": "0.0.0.0"}, "--token-file and --cert and --key"),
        ({"host": "0.0.0.0", "token": "t"}, "--cert and --key, or say --insecure"),
        ({"token": "  "}, "token is empty"),
        ({"cert": "a.pem"}, "belong together"),
        ({"host": "no.such.host.invalid"}, "no address"),
    ],
)
def test_unsafe_settings_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        Settings(**options)


def test_insecure_says_that_it_is_meant(models):
    async def scenario():
        async with served(models, host="0.0.0.0", insecure=True) as server:
            assert (await get(server, "healthz", Host="example.org"))[0] == 200
            with pytest.raises(ServerError, match=f"port {server.port} cannot be listened on"):
                async with served(models, port=server.port):
                    pass

    run(scenario)


def test_the_token_is_not_shown():
    assert "geheim" not in repr(Settings(token="geheim"))
