"""Writes docs/gallery.md: what the three examples score, as their `evaluate.py` left it.

    python examples/gallery.py            # after evaluate.py of audio, timeseries and genomics
    python examples/gallery.py --check    # exit code 1 if the page is not what would be written

Every `examples/NAME/results/*.json` whose head is a :class:`Scores` becomes a section.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import msgspec

from streamssm.atomic import write_bytes

EXAMPLES = Path(__file__).resolve().parent
PAGE = EXAMPLES.parent / "docs" / "gallery.md"

TITLES = {
    "audio": "Voice activity: is somebody speaking?",
    "timeseries": "Exercises on the wrist: which one is it?",
    "genomics": "Host depletion: is this read human?",
}
RUN = {
    "audio": "streamssm run vad mic",
    "timeseries": "streamssm run wrist sensor.csv",
    "genomics": "streamssm run host reads.fastq",
}

INTRODUCTION = """# Gallery

Three trained models come with the package. Each was trained and scored with the public interface only, on
real data that anyone can fetch, beside the peers its users have today. The rows are held out: no speaker,
subject, noise or stretch of a genome that counts here was seen in training. Brackets are 95 % intervals by
bootstrap; a goal stands where one was set, reached or not.

This page is written by `python examples/gallery.py` from what the three `evaluate.py` measured.
"""


class GalleryError(RuntimeError):
    """There is nothing to show, or it cannot be read; the message says what to run."""


class Metric(msgspec.Struct):
    """One score: ours, its interval, the peers' and what it must reach."""

    name: str
    ours: float
    interval: tuple[float, float] | None = None
    peers: dict[str, float] = {}
    goal: float | None = None


class Scores(msgspec.Struct):
    """What an `evaluate.py` leaves: the model, its size, its scores, its picture."""

    model: str
    parameters: int
    bytes: int
    metrics: list[Metric]
    plot: str
    """Beside the file."""


def read_scores(folder: Path) -> tuple[Path, Scores]:
    """The scores of an example.

    Raises:
        GalleryError: there are none, more than one, or they are of another form.
    """
    found = sorted((folder / "results").glob("scores.json"))
    if not found:
        raise GalleryError(f"no scores in {folder / 'results'}: run `python {folder}/evaluate.py` first")
    try:
        return found[0], msgspec.json.decode(found[0].read_bytes(), type=Scores)
    except msgspec.DecodeError as error:
        raise GalleryError(f"{found[0]}: {error}: write it again with evaluate.py") from None


def section(name: str) -> str:
    """A heading, the picture and the table of one example."""
    path, scores = read_scores(EXAMPLES / name)
    picture = path.parent / scores.plot
    if not picture.is_file():
        raise GalleryError(f"{path} names a picture that is not there: {scores.plot}")
    peers = list(dict.fromkeys(peer for metric in scores.metrics for peer in metric.peers))
    return "\n".join(
        [
            f"## {TITLES[name]}",
            f"`{RUN[name]}`: {scores.parameters:,} parameters in {scores.bytes:,} bytes."
            f" [How it was made]({_link(EXAMPLES / name / 'README.md')}),"
            f" [model card]({_link(EXAMPLES / name / 'MODEL_CARD.md')}).",
            "",
            f"![{TITLES[name]}]({_link(picture)})",
            "",
            "| | " + " | ".join([f"**{scores.model}**", *peers, "goal"]) + " |",
            "| --- |" + " --- |" * (len(peers) + 2),
            *(_row(metric, peers) for metric in scores.metrics),
            "",
        ]
    )


def _row(metric: Metric, peers: list[str]) -> str:
    ours = f"**{_number(metric.ours)}**"
    if metric.interval is not None:
        ours += f" [{_number(metric.interval[0])}, {_number(metric.interval[1])}]"
    others = [_number(metric.peers[peer]) if peer in metric.peers else "" for peer in peers]
    goal = "" if metric.goal is None else _number(metric.goal)
    return "| " + " | ".join([metric.name, ours, *others, goal]) + " |"


def _number(value: float) -> str:
    """Four digits of a share; three significant ones of anything larger."""
    if value == 0:
        return "0"
    return f"{value:.4f}" if abs(value) <= 1 else f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _link(path: Path) -> str:
    return os.path.relpath(path, PAGE.parent).replace(os.sep, "/")


def page() -> str:
    """The whole page."""
    return "\n".join([INTRODUCTION, *(section(name) for name in TITLES)])


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if it differs")
    given = parser.parse_args()
    try:
        text = page()
    except GalleryError as error:
        print(f"gallery: {error}", file=sys.stderr)
        return 1
    if given.check:
        return 0 if PAGE.is_file() and PAGE.read_text() == text else 1
    write_bytes(PAGE, text.encode())
    print(PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
