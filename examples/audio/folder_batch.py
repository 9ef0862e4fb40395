"""Every recording in a folder, with a progress bar: one file of events beside another.

    python examples/audio/folder_batch.py recordings --out events
    python examples/audio/folder_batch.py recordings --out events --jobs 4

A file that cannot be read is reported and left out; the exit code is 1 then. Needs
``pip install 'streamssm[audio]'``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

import streamssm
from streamssm.errors import SourceError, StreamSSMError

SUFFIXES = {".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".m4a", ".mp4", ".mkv", ".g722", ".gsm"}
BLOCK = 100  # hops at a time: what is late does not matter here


def recordings(folder: Path) -> list[Path]:
    """The audio files in a folder and those below it, sorted.

    Raises:
        SourceError: it is no folder, or holds none.
    """
    if not folder.is_dir():
        raise SourceError(f"{folder} is no folder: for a single file, use streamssm run vad FILE")
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not found:
        raise SourceError(f"{folder} holds no recordings: looked for {', '.join(sorted(SUFFIXES))}")
    return found


def process(model: streamssm.Model, path: Path, target: Path, advance: Callable[[int], None]) -> int:
    """Write the events of one file, as a whole or not at all; returns how many there are."""
    hop = model.manifest.input.hop
    lines, known = [], 0
    with model.run(path, emit="events", block=BLOCK * hop) as run:
        for row in run:
            lines.append(json.dumps(row) + "\n")
            advance(run.report.items - known)
            known = run.report.items
        advance(run.report.items - known)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.part")
    partial.write_text("".join(lines), encoding="utf-8")
    partial.replace(target)
    return len(lines)


def batch(
    model: streamssm.Model, folder: Path, paths: list[Path], out: Path, jobs: int, progress: Progress
) -> Iterable[tuple[Path, int | Exception]]:
    """Work through files of a folder; yields each with its number of events, or what went wrong."""
    rate = model.manifest.input.rate or 1
    task = progress.add_task("", total=len(paths), heard=0.0)
    lock, heard = Lock(), 0.0

    def advance(items: int) -> None:
        nonlocal heard
        with lock:
            heard += items / rate
            progress.update(task, heard=heard)

    def one(path: Path) -> int | Exception:
        try:
            target = out / path.relative_to(folder).with_suffix(path.suffix + ".jsonl")
            return process(model, path, target, advance)
        except (StreamSSMError, OSError) as error:
            return error
        finally:
            progress.advance(task)

    # one model, many streams: while one is in the model, the others read
    with ThreadPoolExecutor(jobs) as workers:
        yield from zip(paths, workers.map(one, paths), strict=True)


def main() -> int:
    """Work through a folder with a progress bar."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("events"))
    parser.add_argument("--model", default="vad")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    if options.jobs < 1:
        parser.error(f"--jobs is {options.jobs}: give 1 or more")
    columns = (
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.completed:g} of {task.total:g} files, {task.fields[heard]:.0f} s heard"),
        TimeRemainingColumn(),
    )
    failed = 0
    try:
        paths, model = recordings(options.folder), streamssm.load(options.model)
        with Progress(*columns, console=Console(stderr=True)) as progress:
            for path, found in batch(model, options.folder, paths, options.out, options.jobs, progress):
                if isinstance(found, Exception):
                    failed += 1
                    progress.console.print(f"{path}: {found}", markup=False, highlight=False, soft_wrap=True)
                else:
                    print(f"{path}: {found} events", flush=True)
    except StreamSSMError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
