"""The command as a process: what it refuses, TLS, and how it ends."""

from __future__ import annotations

import re
import signal
import socket
import ssl
import subprocess
import sys
import urllib.request

import numpy as np
import pytest
from serve_tools import expected, voice

import streamssm
from streamssm.errors import ServerError, UsageError

PROGRAM = [sys.executable, "-c", "from streamssm.cli import main; main()"]
PATIENCE = 30


class Process:
    """``streamssm serve`` on any free port."""

    def __init__(self, *arguments: object, **options):
        command = [*PROGRAM, "serve", "--port", "0", *map(str, arguments)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, **options)
        self.greeting = self.process.stderr.readline().decode()
        found = re.search(r"http(s?)://\S+:(\d+)/", self.greeting)
        assert found is not None, self.greeting + self.process.stderr.read().decode()
        self.url, self.port = f"ws{found[1]}://127.0.0.1:{found[2]}", int(found[2])

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str, str]:
        """Send a signal; exit code, stdout and stderr."""
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, out.decode(), err.decode()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module")
def paths(models):
    return {name: model.path for name, model in models.items()}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_ends_the_streams_and_then_the_server(paths, models, number, code):
    x = voice()[:14000]
    with Process(paths["voice"]) as server, streamssm.connect(server.url) as stream:
        rows = stream.send(x)
        stream.snapshot()  # all is there
        assert server.end(number) == (
            code,
            "",
            "streamssm serve: ending the streams; a second signal ends at once\n",
        )
        with pytest.raises(ServerError, match="1001"):
            stream._until("never")
        assert rows + stream.arrived() == expected(models["voice"], x)


def test_a_second_signal_does_not_wait(paths):
    with (
        Process(paths["voice"], "--drain-timeout", 60) as server,
        socket.create_connection(("127.0.0.1", server.port)) as peer,
    ):
        peer.sendall(
            b"GET /v1/stream HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n"
        )
        assert b"101" in peer.recv(64)  # and it will never answer a close frame
        server.process.send_signal(signal.SIGINT)
        server.process.stderr.readline()
        assert server.end(signal.SIGINT)[0] == 130


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    try:
        subprocess.run(
            [*command, *names, "-keyout", folder / "key.pem", "-out", folder / "cert.pem"],
            check=True,
            capture_output=True,
        )
    except FileNotFoundError:
        pytest.skip("openssl, which makes the certificate, is not installed")
    return folder / "cert.pem", folder / "key.pem"


def test_one_name_for_two_files_is_no_hindrance(paths, models):
    x = voice()
    with Process(paths["voice"], f"again={paths['voice']}") as server:
        with streamssm.connect(server.url, "again") as stream:
            rows = stream.send(x)
            assert rows + stream.flush() == expected(models["voice"], x)
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics") as page:
            assert 'model="again"' in page.read().decode()
        assert server.end()[0] == 0


def test_tls_and_a_token_from_a_file(paths, models, certificate, tmp_path):
    x = voice()
    cert, key = certificate
    (tmp_path / "token").write_text("secret\n", encoding="utf-8")
    options = ["--cert", cert, "--key", key, "--token-file", tmp_path / "token", "--host", "0.0.0.0"]
    with Process(paths["voice"], *options) as server:
        assert "with a token" in server.greeting
        assert "secret" not in server.greeting
        trust = ssl.create_default_context(cafile=cert)
        with streamssm.connect(server.url, token="secret\n", ssl=trust) as stream:  # as it is in the file
            rows = stream.send(x)
            assert rows + stream.flush() == expected(models["voice"], x)
        for token, message in (("wrong", "is not that of this server"), (None, "wants a token")):
            with pytest.raises(ServerError, match=message):
                streamssm.connect(server.url, token=token, ssl=trust)
        with pytest.raises(ServerError, match="give ssl= a context"):
            streamssm.connect(server.url, token="secret")  # nobody vouches for it
        with pytest.raises(ServerError, match="write wss://"):
            streamssm.connect(server.url.replace("wss", "ws").replace("https", "http"), token="secret")
        with pytest.raises(UsageError) as refused:
            streamssm.connect(server.url, token="sec\nret")
        assert "ret" not in str(refused.value)
        assert server.end()[0] == 0


def test_the_built_in_model_as_run_has_it():
    from page_tools import SPEECH, read_wav, run_rows

    rate, x = read_wav(SPEECH)
    with Process() as server, streamssm.connect(server.url, "vad", encoding="s16le", rate=rate) as stream:
        rows = [row for part in np.array_split(x, 50) for row in stream.send(part)]
        assert rows + stream.flush() == run_rows(SPEECH)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--host", "0.0.0.0"], 2, "--insecure"),
        (["--token", ""], 2, "token is empty"),
        (["--token", "a", "--token-file", "b"], 2, "give one"),
        (["--token-file", "nothing.here"], 2, "cannot be read"),
        (["--cert", "nothing.pem", "--key", "nothing.pem"], 2, "PEM"),
        (["--gather", "4"], 2, "lacks a unit"),
        (["--max-message", "1x"], 2, "not a size"),
        (["--block", "7"], 2, "block = 7"),
        (["no_such_model"], 3, "no built-in model"),
        (["vad", "vad"], 2, "two of the models"),
    ],
)
def test_what_cannot_be_served_is_said_before(options, code, message, tmp_path, monkeypatch):
    from click.testing import CliRunner

    from streamssm.cli import cli

    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli, ["serve", "--port", "0", *options])
    assert result.exit_code == code, result.output
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_port_that_is_taken():
    from click.testing import CliRunner

    from streamssm.cli import cli

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = CliRunner().invoke(cli, ["serve", "--port", str(port)])
    assert result.exit_code == 1
    assert f"port {port} cannot be listened on" in result.stderr


@pytest.mark.parametrize("missing", ["aiohttp", "prometheus_client"])
def test_without_the_extra_it_says_what_to_install(missing):
    script = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from streamssm.cli import main\nsys.argv = ['streamssm', 'serve', '--port', '0']\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == f"error: a server needs {missing}; pip install 'streamssm[serve]'\n"


def test_importing_the_package_imports_no_server():
    script = (
        "import sys, streamssm, streamssm.cli\n"
        "heavy = {'aiohttp', 'websockets', 'prometheus_client', 'asyncio'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
