"""The promise, tested on a given model: any split of the input gives the same output as the whole.

Each check is one function of a :class:`Subject`; :data:`CHECKS` lists them in the order of the
report. At one block size comparisons are byte for byte; across block sizes, batches and against
the golden vectors they are within the tolerance table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from streamssm import tolerance
from streamssm.draw import Array, default_items, draw_input, draw_split, pieces
from streamssm.errors import InputError, StreamSSMError, UsageError
from streamssm.golden import sampled_columns
from streamssm.outputs import Outputs, by_name, joined

if TYPE_CHECKING:
    from streamssm.model import Model
    from streamssm.stream import Stream

Verdict = Literal["pass", "fail", "skip"]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Check:
    """The result of one check."""

    name: str
    verdict: Verdict
    cases: int
    detail: str


class CheckFailedError(Exception):
    """A case that breaks the promise; its text says which and where."""


class CheckSkipped(Exception):  # noqa: N818
    """There is nothing to check; its text says why."""


@dataclass
class Subject:
    """A model under test, with the input, its whole output, and the source of random draws."""

    model: Model
    x: Array
    splits: int
    block: int
    rng: np.random.Generator
    progress: Progress
    whole: Outputs = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.whole = self.alone(self.x)

    @property
    def few(self) -> int:
        """Cases of the checks that take a point rather than a whole split."""
        return max(1, self.splits // 5)

    @property
    def dtype(self) -> str:
        """What products are computed in: that of the weights, unless the backend rounds them further."""
        rounded = self.model.backend.kernels.precision
        return self.model.manifest.weights.dtype if rounded == "float32" else rounded

    def stream(self) -> Stream:
        """A fresh stream at the block under test."""
        return self.model.stream(block=self.block)

    def run(self, stream: Stream, chunks: Sequence[Array]) -> Outputs:
        """Everything a stream says to these chunks and the flush after them."""
        results = [stream.push(chunk) for chunk in chunks]
        return joined(self.model.manifest, [*results, stream.flush()])

    def alone(self, x: Array) -> Outputs:
        """What a fresh stream makes of the whole of ``x``."""
        return self.run(self.stream(), [x])

    def cut(self) -> int:
        """A random place in the input, its ends included."""
        return int(self.rng.integers(0, len(self.x) + 1))

    def split(self, x: Array) -> list[Array]:
        """A random split of ``x``."""
        return pieces(x, draw_split(len(x), self.block, self.rng))

    def same(self, found: Outputs, what: str, expected: Outputs | None = None) -> None:
        """Fail unless the outputs are those of the whole, byte for byte."""
        for name, wanted in (self.whole if expected is None else expected).items():
            seen = found[name]
            if seen.shape != wanted.shape:
                raise CheckFailedError(f"{what}: {name} has {len(seen)} items, the whole {len(wanted)}")
            if seen.tobytes() != wanted.tobytes():
                differs = (seen != wanted).reshape(len(seen), -1).any(axis=1)
                first = int(differs.argmax())
                raise CheckFailedError(f"{what}: {name} differs from item {first} on ({differs.sum()} items)")

    def close(self, found: Outputs, expected: Outputs, what: str) -> float:
        """Fail unless the outputs are within the tolerance; return the largest relative error."""
        worst = 0.0
        for name, wanted in expected.items():
            seen = found[name]
            if seen.shape != wanted.shape:
                raise CheckFailedError(f"{what}: {name} has shape {seen.shape}, expected {wanted.shape}")
            largest, relative = tolerance.error(seen, wanted)
            if not tolerance.within(seen, wanted, self.dtype, self.model.manifest.rounding):
                raise CheckFailedError(f"{what}: {name} is off by {largest:.3g} ({relative:.3g} relative)")
            worst = max(worst, relative)
        return worst


def run_checks(
    model: Model,
    *,
    items: int | None = None,
    splits: int = 50,
    seed: int = 0,
    block: int | None = None,
    progress: Progress = lambda name, done, total: None,
) -> Iterator[Check]:
    """Run every check, yielding each result as it is known.

    Args:
        model: an opened model. That it opened says that its hash is right and that its graph is
            the one its manifest describes.
        items: length of the random input; by default what suits the model.
        splits: random splits; other checks draw a fifth as many points.
        seed: the same seed draws the same cases.
        block: block size under test; by default the manifest's.
        progress: called with the name of the check, cases done, and cases in all.

    Raises:
        UsageError: ``items`` or ``block`` does not fit the model.
    """
    if items is not None and items < 1:
        raise UsageError(f"{items} items cannot be split; give at least one")
    rng = np.random.default_rng(seed)
    x = draw_input(model.manifest, default_items(model.manifest) if items is None else items, rng)
    yield _integrity(model)
    subject = Subject(model, x, splits, model.stream(block=block).block, rng, progress)
    for name, check in CHECKS.items():
        yield _run(name, check, subject)


def _run(name: str, check: Callable[[Subject], tuple[int, str] | None], subject: Subject) -> Check:
    try:
        outcome = check(subject)
    except CheckFailedError as error:
        return Check(name, "fail", 0, str(error))
    except CheckSkipped as why:
        return Check(name, "skip", 0, str(why))
    except StreamSSMError as error:
        return Check(name, "fail", 0, f"{type(error).__name__}: {error}")
    if outcome is None:
        return Check(name, "skip", 0, "the file holds none")
    return Check(name, "pass", *outcome)


def _integrity(model: Model) -> Check:
    manifest = model.manifest
    detail = f"sha256 {model.sha256[:12]}, {len(manifest.states)} states, graph as in the manifest"
    return Check("integrity", "pass", 1, detail)


def _golden(subject: Subject) -> tuple[int, str] | None:
    golden = subject.model.golden()
    if golden is None:
        return None
    x, expected = golden
    manifest = subject.model.manifest
    found = by_name(manifest, subject.model.scan(x, block=subject.block))
    wanted, seen = {}, {}
    for output in manifest.outputs:
        # recorded in one call, without what a flush adds and with the warm-up a stream drops
        wanted[output.name] = expected[output.name][int(manifest.lookahead * output.per_item) :]
        seen[output.name] = sampled_columns(found[output.name])[: len(wanted[output.name])]
    worst = subject.close(seen, wanted, "golden vectors")
    return len(x), f"{len(x)} items, largest relative error {worst:.2g}"


def _splits(subject: Subject) -> tuple[int, str]:
    scanned = by_name(subject.model.manifest, subject.model.scan(subject.x, block=subject.block))
    subject.same(scanned, "scan")
    pushes = 0
    for case in range(subject.splits):
        subject.progress("splits", case, subject.splits)
        chunks = subject.split(subject.x)
        pushes += len(chunks)
        lengths = [len(chunk) for chunk in chunks]
        subject.same(subject.run(subject.stream(), chunks), f"split {case}, lengths {_brief(lengths)}")
    return subject.splits, f"{pushes} pushes of {len(subject.x)} items, byte-equal at block {subject.block}"


def _empty(subject: Subject) -> tuple[int, str]:
    nothing = subject.x[:0]
    for case in range(subject.few):
        cut = subject.cut()
        chunks = [nothing, subject.x[:cut], nothing, nothing, subject.x[cut:], nothing]
        subject.same(subject.run(subject.stream(), chunks), f"empty pushes around item {cut} (case {case})")
    return subject.few, "byte-equal"


def _blocks(subject: Subject) -> tuple[int, str]:
    sizes, worst = sorted(_sizes(subject) - {subject.block}), 0.0
    if not sizes:
        raise CheckSkipped(f"it was built for blocks of {subject.block} alone")
    for done, size in enumerate(sizes):
        subject.progress("blocks", done, len(sizes))
        found = by_name(subject.model.manifest, subject.model.scan(subject.x, block=size))
        worst = max(worst, subject.close(found, subject.whole, f"block {size}"))
    return len(sizes), f"blocks {_brief(sizes)}, largest relative error {worst:.2g}"


def _sizes(subject: Subject) -> set[int]:
    """Blocks to compare: all that an engine was built for; else the extremes, and some drawn."""
    built = subject.model.backend.blocks
    if built is not None:
        return set(built)
    hop = subject.model.manifest.input.hop
    largest = max(1, len(subject.x) // hop)
    drawn = subject.rng.integers(1, largest + 1, size=subject.few)
    return {hop * count for count in {1, 2, largest, *map(int, drawn)}}


def _reset(subject: Subject) -> tuple[int, str]:
    for case in range(subject.few):
        stream = subject.stream()
        for chunk in subject.split(subject.x[: subject.cut()]):
            stream.push(chunk)
        if case % 2:
            stream.flush()
        stream.reset()
        subject.same(subject.run(stream, [subject.x]), f"reset {case}")
    return subject.few, "byte-equal after a reset in the middle"


def _snapshot(subject: Subject) -> tuple[int, str]:
    size = 0
    for case in range(subject.few):
        subject.progress("snapshot", case, subject.few)
        cut, stream = subject.cut(), subject.stream()
        before = [stream.push(chunk) for chunk in subject.split(subject.x[:cut])]
        saved = stream.snapshot()
        size = max(size, len(saved))
        for name, after in (("resumed", subject.model.resume(saved)), ("original", stream)):
            rest = [after.push(chunk) for chunk in subject.split(subject.x[cut:])]
            found = joined(subject.model.manifest, [*before, *rest, after.flush()])
            subject.same(found, f"{name} stream, saved at item {cut}")
    return subject.few, f"byte-equal, at most {size} bytes each"


def _fork(subject: Subject) -> tuple[int, str]:
    for case in range(subject.few):
        subject.progress("fork", case, subject.few)
        cut, stream = subject.cut(), subject.stream()
        before = [stream.push(chunk) for chunk in subject.split(subject.x[:cut])]
        stray, twin = stream.fork(), stream.fork()
        # a fork that shared anything would disturb the others by going its own way
        stray.push(draw_input(subject.model.manifest, 2 * subject.block + 1, subject.rng))
        for name, after in (("original", stream), ("fork", twin)):
            rest = [after.push(chunk) for chunk in subject.split(subject.x[cut:])]
            found = joined(subject.model.manifest, [*before, *rest, after.flush()])
            subject.same(found, f"{name} after a fork at item {cut}")
    return subject.few, "byte-equal, streams independent"


def _batch(subject: Subject) -> tuple[int, str]:
    manifest, worst = subject.model.manifest, 0.0
    most = subject.model.backend.most_rows
    batches = [rows for rows in (2, 3) if most is None or rows <= most]
    if not batches:
        raise CheckSkipped("it was built for one sequence at once")
    for rows in batches:
        others = [draw_input(manifest, len(subject.x), subject.rng) for _ in range(rows - 1)]
        stream = subject.model.stream(block=subject.block, batch=rows)
        x = np.stack([*others, subject.x])
        results = [stream.push(x[:, :1]), stream.push(x[:, 1:]), stream.flush()]
        found = joined(manifest, results, axis=1)
        singles = [*(subject.alone(other) for other in others), subject.whole]
        for row, single in enumerate(singles):
            part = {name: y[row] for name, y in found.items()}
            worst = max(worst, subject.close(part, single, f"row {row} of a batch of {rows}"))
    said = " and ".join(map(str, batches))
    return len(batches), f"batches of {said}, largest relative error {worst:.2g}"


def _refusal(subject: Subject) -> tuple[int, str]:
    bad, what = _bad_chunk(subject)
    for _ in range(subject.few):
        cut, stream = subject.cut(), subject.stream()
        before = [stream.push(chunk) for chunk in subject.split(subject.x[:cut])]
        state = stream.snapshot()
        try:
            stream.push(bad)
        except InputError:
            pass
        else:
            raise CheckFailedError(f"a chunk with {what} was not refused at item {cut}")
        if stream.snapshot() != state:
            raise CheckFailedError(f"a refused chunk changed the stream at item {cut}")
        found = joined(subject.model.manifest, [*before, stream.push(subject.x[cut:]), stream.flush()])
        subject.same(found, f"after a refused chunk at item {cut}")
    return subject.few, f"{what} refused, stream unchanged"


def _bad_chunk(subject: Subject) -> tuple[Array, str]:
    """A chunk that must be refused, its bad item last."""
    manifest = subject.model.manifest
    chunk = draw_input(manifest, 2 * subject.block + 1, subject.rng)
    if manifest.input.dtype == "int64":
        chunk[-1] = -1 if manifest.input.vocabulary is None else manifest.input.vocabulary
        return chunk, f"token {chunk[-1].flat[0]}"
    chunk[-1] = np.nan
    return chunk, "NaN"


def _brief(lengths: Sequence[int]) -> str:
    shown = ", ".join(map(str, lengths[:6]))
    return f"[{shown}, ... {len(lengths)}]" if len(lengths) > 6 else f"[{shown}]"


CHECKS: dict[str, Callable[[Subject], tuple[int, str] | None]] = {
    "golden vectors": _golden,
    "splits": _splits,
    "empty pushes": _empty,
    "block sizes": _blocks,
    "reset": _reset,
    "snapshot": _snapshot,
    "fork": _fork,
    "batch": _batch,
    "bad input": _refusal,
}
