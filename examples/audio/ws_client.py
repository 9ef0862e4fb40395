"""Send a recording, or a microphone, to ``streamssm serve`` and print the events as they come.

    streamssm serve vad &
    python examples/audio/ws_client.py ws://localhost:8765 examples/audio/speech.wav
    python examples/audio/ws_client.py ws://localhost:8765 mic

Needs ``pip install 'streamssm[audio,live]'``, and no model: the server has it.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Iterator

import streamssm
from streamssm.errors import StreamSSMError
from streamssm.manifest import Input
from streamssm.sources import Request, open_source

CHUNK = 0.1  # seconds sent at a time


def rows(url: str, uri: str, model: str | None = None, token: str | None = None) -> Iterator[dict]:
    """The rows of a source; Ctrl-C flushes."""
    stopped: list[int] = []
    with streamssm.connect(url, model, token=token) as stream:
        rate = stream.ready["rate"]
        request = Request(Input("audio", "samples", "float32", (), rate=rate))
        before = signal.signal(signal.SIGINT, lambda number, _: stopped.append(number))
        try:
            with open_source(uri, request) as source:
                while not stopped and len(samples := source.read(round(CHUNK * rate))):
                    yield from stream.send(samples)
            yield from stream.flush()
        finally:
            signal.signal(signal.SIGINT, before)


def main() -> int:
    """Print rows as JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("url", help="of the server, such as ws://localhost:8765")
    parser.add_argument("source", help="a file, sim:FILE, mic, or any source of streamssm run")
    parser.add_argument("--model", help="needed where the server has several")
    parser.add_argument("--token", default=os.environ.get("STREAMSSM_TOKEN"), help="[$STREAMSSM_TOKEN]")
    options = parser.parse_args()
    try:
        for row in rows(options.url, options.source, options.model, options.token):
            print(json.dumps(row), flush=True)
    except StreamSSMError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
