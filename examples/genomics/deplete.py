"""Host depletion as a sequencer would do it: many channels at once, a decision for every read.

    python examples/genomics/deplete.py [READS.fastq] [--channels 512] [--host-share 0.9] [--minutes 30]

Reads of the file go to the channels in turn and arrive 100 bases at a time. A read that is human by the model
is pushed out of its pore; the rest is read to its end. The same run without decisions says what was gained.
Reads whose names begin with "human" are counted as human: with them in the file it is known what was right.
`make_reads.py` writes such a file. Nothing waits for a clock: a run of 30 minutes takes what its computing
takes, and the cores printed at the end are that over the time that a sequencer would have given.
"""

from __future__ import annotations

import argparse
import gzip
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from genomes import CODES, DataError
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import streamssm
from streamssm.errors import StreamSSMError

HERE = Path(__file__).resolve().parent
HOP, SPEED = 100, 450.0  # bases an answer, bases a second of a nanopore
TICK = HOP / SPEED  # seconds
CAPTURE, PUSH_OUT = 1.0, 0.5  # seconds until the next read, and to be rid of one


@dataclass(frozen=True)
class Read:
    """One molecule."""

    name: str
    bases: np.ndarray  # [n] tokens of ACGTN

    @property
    def human(self) -> bool:
        """What its name says."""
        return self.name.startswith("human")


@dataclass
class Yield:
    """What a run gave."""

    bases: Counter = field(default_factory=Counter)  # read of "human" and "other" molecules
    reads: Counter = field(default_factory=Counter)  # (human, pushed out)
    decided_at: list[int] = field(default_factory=list)
    curve: list[int] = field(default_factory=list)  # microbial bases so far, tick by tick
    busy: float = 0.0  # processor seconds of the decisions

    @property
    def share(self) -> float:
        """Of the bases that are not human."""
        return self.bases["other"] / max(1, self.bases.total())


class Draw:
    """Molecules in the order in which pores catch them: human ones as often as they are in the sample."""

    def __init__(self, reads: list[Read], host_share: float, seed: int):
        self.rng, self.host_share = np.random.default_rng(seed), host_share
        self.kinds = [[r for r in reads if r.human is human] for human in (False, True)]

    def __call__(self) -> Read:
        """The next one."""
        human = bool(self.kinds[1]) and self.rng.random() < self.host_share
        kind = self.kinds[human] or self.kinds[not human]
        return kind[int(self.rng.integers(len(kind)))]


class Sequencer:
    """Channels that catch, read and push out; one tick is the time of HOP bases."""

    def __init__(self, model: streamssm.Model | None, draw: Draw, args):
        self.draw, self.args, self.found = draw, args, Yield()
        n = args.channels
        self.read: list[Read | None] = [None] * n
        self.at = np.zeros(n, np.int64)  # bases of the read that were given
        self.open = np.zeros(n, bool)  # not decided yet
        self.wait = draw.rng.uniform(0, CAPTURE, n)  # seconds until the pore catches something
        self.pool = None if model is None else model.pool(n)
        for channel in range(0 if self.pool is None else n):
            self.pool.open(channel)

    def tick(self) -> None:
        """HOP bases of every channel that has them."""
        self.wait -= TICK
        for channel in np.flatnonzero([r is None for r in self.read] & (self.wait <= 0)):
            self._catch(int(channel))
        arriving = [c for c, read in enumerate(self.read) if read is not None]
        full = [c for c in arriving if self.open[c] and self.at[c] + HOP <= len(self.read[c].bases)]
        answers = self._ask(full) if full else {}
        for channel in arriving:
            self._advance(channel, answers.get(channel, 0.0))
        self.found.curve.append(self.found.bases["other"])

    def _catch(self, channel: int) -> None:
        self.read[channel], self.at[channel], self.open[channel] = self.draw(), 0, self.pool is not None
        if self.pool is not None:
            self.pool.reset(channel)

    def _ask(self, channels: list[int]) -> dict[int, float]:
        """The probability of each of these channels after its next HOP bases."""
        began = time.process_time()
        rows = np.stack([self.read[c].bases[self.at[c] : self.at[c] + HOP] for c in channels])
        self.pool.push_rows(channels, rows)
        answers: dict[int, float] = {}
        for group in self.pool.step_rows():
            answers |= zip(group.keys, group.outputs[:, 0, 0].tolist(), strict=True)
        self.found.busy += time.process_time() - began
        return answers

    def _advance(self, channel: int, probability: float) -> None:
        read = self.read[channel]
        gained = min(HOP, len(read.bases) - int(self.at[channel]))
        self.found.bases["human" if read.human else "other"] += gained
        self.at[channel] += gained
        pushed_out = self.open[channel] and probability >= self.args.threshold
        if pushed_out or self.at[channel] >= len(read.bases):
            self.found.reads[read.human, bool(pushed_out)] += 1
            if pushed_out:
                self.found.decided_at.append(int(self.at[channel]))
            self.read[channel] = None
            self.wait[channel] = self.draw.rng.exponential(CAPTURE) + PUSH_OUT * bool(pushed_out)
        elif self.at[channel] >= self.args.bases:
            self.open[channel] = False  # it stays


def read_fastq(path: Path) -> list[Read]:
    """The reads of at least HOP bases of a FASTQ file, four lines each, compressed or not.

    Raises:
        DataError: it is no such file, or none of its reads is long enough.
    """
    data = path.read_bytes()
    lines = (gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data).splitlines()
    heads, texts = lines[0::4], lines[1::4]
    if not lines or any(line[:1] != b"@" for line in heads) or any(line[:1] != b"+" for line in lines[2::4]):
        raise DataError(f"{path} is no FASTQ file of four lines a read")
    found = [
        Read(head[1:].decode(errors="replace"), CODES[np.frombuffer(text, np.uint8)])
        for head, text in zip(heads, texts, strict=False)
        if len(text) >= HOP
    ]
    if not found:
        raise DataError(f"{path} holds no read of {HOP} bases; make_reads.py writes a file that does")
    return found


def simulate(model: streamssm.Model | None, reads: list[Read], args) -> Yield:
    """A run with the model's decisions, or without any."""
    sequencer = Sequencer(model, Draw(reads, args.host_share, args.seed), args)
    ticks = round(args.minutes * 60 / TICK)
    with Progress(disable=not sys.stderr.isatty(), transient=True) as bar:
        for _ in bar.track(range(ticks), description="with decisions" if model else "without"):
            sequencer.tick()
    return sequencer.found


def show(with_model: Yield, without: Yield, args) -> None:
    """What was gained."""
    table = Table(
        "", "without decisions", "with decisions", title=f"{args.channels} channels, {args.minutes:g} min"
    )
    for kind in ("other", "human"):
        row = [f"{y.bases[kind] / 1e6:.1f}" for y in (without, with_model)]
        table.add_row(f"million bases, {'microbial' if kind == 'other' else kind}", *row)
    table.add_row("microbial share of bases", f"{without.share:.1%}", f"{with_model.share:.1%}")
    console = Console()
    console.print(table)
    reads = with_model.reads
    human, other = (max(1, reads[k, True] + reads[k, False]) for k in (True, False))
    console.print(
        f"human reads pushed out: {reads[True, True] / human:.1%} of {human}, "
        f"microbial ones lost: {reads[False, True] / other:.1%} of {other}"
    )
    if with_model.decided_at:
        console.print(f"decided after {np.median(with_model.decided_at):.0f} bases (median)")
    gain = with_model.bases["other"] / max(1, without.bases["other"])
    more = _ratio(with_model, without)
    console.print(f"enrichment: {gain:.2f} times the microbial bases, {more:.2f} times their share")
    load = with_model.busy / (args.minutes * 60)
    console.print(f"computing: {load:.1f} cores of this machine, to keep up with the sequencer")


def _ratio(with_model: Yield, without: Yield) -> float:
    return with_model.share / max(without.share, 1e-9)


def draw_curves(with_model: Yield, without: Yield, path: Path) -> None:
    """Microbial bases against the time of the sequencer."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
    for found, label in ((with_model, "with decisions"), (without, "without")):
        minutes = np.arange(1, len(found.curve) + 1) * TICK / 60
        axis.plot(
            minutes, np.array(found.curve) / 1e6, label=f"{label}: {found.share:.0%} of bases microbial"
        )
    axis.set_xlabel("minutes of the sequencer")
    axis.set_ylabel("million microbial bases")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("reads", type=Path, nargs="?", default=HERE / "reads.fastq")
    parser.add_argument("--model", default="host", help="built-in name or .onnx file")
    parser.add_argument("--channels", type=int, default=512)
    parser.add_argument("--minutes", type=float, default=5.0, help="of the sequencer")
    parser.add_argument("--host-share", type=float, default=0.9, help="of the molecules in the sample")
    parser.add_argument("--threshold", type=float, default=0.9, help="a read as likely human is pushed out")
    parser.add_argument("--bases", type=int, default=400, help="after so many a read may stay")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", type=Path, help="draw the gain here")
    args = parser.parse_args()
    try:
        reads, model = read_fastq(args.reads), streamssm.load(args.model)
        found = simulate(model, reads, args), simulate(None, reads, args)
        show(*found, args)
        if args.plot:
            draw_curves(*found, args.plot)
    except (DataError, StreamSSMError, OSError, EOFError) as error:
        print(f"deplete: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
