"""`streamssm serve` as a process."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
from collections.abc import Iterator
from urllib.parse import urlsplit


@contextlib.contextmanager
def served(model: str, slots: int, *options: str) -> Iterator[tuple[str, int]]:
    """Its host and port."""
    command = [
        sys.executable,
        "-m",
        "streamssm",
        "serve",
        model,
        "--port",
        "0",
        "--slots",
        str(slots),
        *options,
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        found = re.search(r"http://\S+", line)
        if found is None:
            raise SystemExit(f"the server did not start: {line}{process.stderr.read()}")
        address = urlsplit(found[0])
        yield address.hostname or "127.0.0.1", address.port or 0
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
