"""Plays recordings as a watch would send them, with losses: to a broker, or by appending to a table.

    python examples/timeseries/send.py mqtt://127.0.0.1/gym/wrist      JSON messages of five samples
    python examples/timeseries/send.py wrist.csv                       rows with a time column
    python examples/timeseries/send.py sensor.csv --speed 0 --lose 0   at once, as a file to try

Beside it, in another terminal, one of

    streamssm run wrist mqtt://127.0.0.1/gym/wrist
    streamssm run wrist tail:wrist.csv --time-column time

Exercises of one person follow one another without a pause. ``--lose`` is the share of messages that never
arrive, and ``--away`` a silence of so many seconds in the middle: the runtime sees both by number or time.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from wrist_data import AXES, CACHE, LABELS, RATE, DataError, Series, load, of

FRAMES = 5  # samples of a message
#: takes the number of the first sample, and samples [n, 6]
Send = Callable[[int, np.ndarray], None]


def playlist(
    series: list[Series], subject: int, seconds: float
) -> tuple[np.ndarray, list[tuple[float, str]]]:
    """Samples [T, 6] of one arm's exercises after one another, and when each begins.

    Raises:
        DataError: nobody has this number.
    """
    mine = [one for one in of(series, (subject,)) if one.side == 0]
    if not mine:
        raise DataError(f"--subject {subject}: use one of 1 to {max(one.subject for one in series)}")
    cut = [one.x[: round(seconds * RATE)] for one in mine]
    begins = np.cumsum([0, *(len(x) for x in cut)])[:-1] / RATE
    return np.concatenate(cut), [(float(t), LABELS[one.label]) for t, one in zip(begins, mine, strict=True)]


def messages(x: np.ndarray, lose: float, away: float, seed: int) -> Iterator[tuple[int, np.ndarray | None]]:
    """(number of its first sample, samples or None if it is lost) of every message."""
    random = np.random.default_rng(seed)
    middle, gone = len(x) // 2, round(away * RATE)
    for at in range(0, len(x), FRAMES):
        lost = middle <= at < middle + gone or random.random() < lose
        yield at, None if lost else x[at : at + FRAMES]


def to_broker(url: str) -> tuple[Send, Callable[[], None]]:
    """Publishes each message to the topic of an ``mqtt://HOST[:PORT]/TOPIC``.

    Raises:
        ImportError: paho-mqtt is missing.
    """
    try:
        from paho.mqtt import client as mqtt
    except ImportError as error:
        raise ImportError("MQTT needs paho-mqtt: pip install 'streamssm[live]'") from error
    parts = urlsplit(url)
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
    client.connect(parts.hostname or "127.0.0.1", parts.port or 1883)
    client.loop_start()

    def send(at: int, frames: np.ndarray) -> None:
        content = {"seq": at // FRAMES, "time": round(at / RATE, 3), "x": np.round(frames, 5).tolist()}
        client.publish(parts.path.lstrip("/"), json.dumps(content), qos=1).wait_for_publish(5)

    def close() -> None:
        client.loop_stop()
        client.disconnect()

    return send, close


def to_table(path: Path) -> tuple[Send, Callable[[], None]]:
    """Appends rows to a table, which gets its header first; each message is on the disk at once."""
    file = path.open("a")
    if not file.tell():
        file.write(",".join(("time", *AXES)) + "\n")

    def send(at: int, frames: np.ndarray) -> None:
        for offset, row in enumerate(frames.tolist()):
            file.write(",".join([f"{(at + offset) / RATE:.2f}", *(f"{v:.5f}" for v in row)]) + "\n")
        file.flush()

    return send, file.close


def play(x: np.ndarray, send: Send, args: argparse.Namespace) -> int:
    """Send every message when it is due; how many were lost."""
    began, lost = time.monotonic(), 0
    for at, frames in messages(x, args.lose, args.away, args.seed):
        if args.speed:
            due = began + (at + FRAMES) / RATE / args.speed
            time.sleep(max(0.0, due - time.monotonic()))
        if frames is None:
            lost += 1
        else:
            send(at, frames)
    return lost


def main() -> int:
    """Entry point."""
    args = _arguments()
    try:
        x, begins = playlist(load(args.cache), args.subject, args.seconds)
        for second, label in begins:
            print(f"{second:7.2f} s  {label}", file=sys.stderr)
        open_it = to_broker if args.target.startswith("mqtt://") else lambda path: to_table(Path(path))
        send, close = open_it(args.target)
        lost = play(x, send, args)
        close()
    except (DataError, OSError, ImportError) as error:
        print(f"send: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(f"{len(x)} samples, of which {lost * FRAMES} were never sent", file=sys.stderr)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", help="mqtt://HOST[:PORT]/TOPIC, or a file to append to")
    parser.add_argument("--subject", type=int, default=7, help="whose exercises, 1 to 10")
    parser.add_argument("--seconds", type=float, default=12.0, help="of each exercise")
    parser.add_argument("--speed", type=float, default=1.0, help="times as fast as it was; 0: at once")
    parser.add_argument("--lose", type=float, default=0.02, help="share of messages that are lost")
    parser.add_argument("--away", type=float, default=2.0, help="seconds of silence in the middle")
    parser.add_argument("--seed", type=int, default=1, help="of what is lost")
    parser.add_argument("--cache", type=Path, default=CACHE)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
