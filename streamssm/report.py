"""Statistics of one run: how long pushes took, beside the delay that the model itself imposes.

Algorithmic latency (block and look-ahead) is what a listener waits even on an infinitely fast
machine. Compute is measured apart from it. Everything here is of constant size, however long the
stream lives.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from streamssm.manifest import Manifest

if TYPE_CHECKING:
    from streamssm.live.inbox import Inbox
    from streamssm.sources.base import Gap

Summary = dict[str, object]

_SHORTEST = 1e-8  # seconds; the first bin
_GROWTH = math.log(1.01)  # bins are 1 % wide
_BINS = int(math.log(1e12) / _GROWTH) + 1  # up to 10,000 s
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99_9": 0.999}


class Latencies:
    """Durations in seconds, in bins 1 % wide; count, total and largest are exact."""

    def __init__(self) -> None:
        self.count, self.total, self.largest = 0, 0.0, 0.0
        self._bins = array("Q", bytes(8 * _BINS))

    def add(self, seconds: float) -> None:
        """Count one duration; a negative one (early) counts as zero."""
        seconds = max(seconds, 0.0)
        self.count += 1
        self.total += seconds
        self.largest = max(self.largest, seconds)
        place = int(math.log(max(seconds, _SHORTEST) / _SHORTEST) / _GROWTH)
        self._bins[min(place, _BINS - 1)] += 1

    def quantile(self, fraction: float) -> float:
        """The duration that ``fraction`` of all stay at or below, at most 1 % too high; 0 if none."""
        wanted, seen = math.ceil(fraction * self.count), 0
        for place, number in enumerate(self._bins):
            seen += number
            if number and seen >= wanted:
                # the last bin has no upper end
                end = _SHORTEST * math.exp((place + 1) * _GROWTH) if place < _BINS - 1 else math.inf
                return min(end, self.largest)
        return 0.0

    def milliseconds(self) -> dict[str, float]:
        """Count, quantiles and largest, as milliseconds."""
        values = {name: self.quantile(fraction) for name, fraction in QUANTILES.items()}
        values["max"] = self.largest
        return {name: round(value * 1e3, 6) for name, value in values.items()}


@dataclass
class GapCount:
    """Gaps of one reason: how many, and the items and seconds of those that are known."""

    count: int = 0
    items: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        """Such as: 3 (480 items, 1.5 s)."""
        known = [f"{self.items} items"] if self.items else []
        known += [f"{self.seconds:.3g} s"] if self.seconds else []
        return f"{self.count} ({', '.join(known)})" if known else str(self.count)


@dataclass
class RunReport:
    """Counters of one run. ``seconds`` of input are None without a clock.

    ``items`` came from the source, ``filled`` were put in the place of lost ones, ``passed`` are the lost
    ones that only the clock counts. ``records`` have ended.
    ``nan`` are items of the first output that hold NaN: rules see no event in them.
    ``inbox`` is where a live source waits, ``notes`` say how it was converted, ``saves`` are snapshots.
    """

    manifest: Manifest
    block: int
    items: int = 0
    lines: int = 0
    misses: int = 0
    paced: bool = False
    compute: float = 0.0
    latencies: Latencies = field(default_factory=Latencies)
    records: int = 0
    filled: int = 0
    passed: int = 0
    saves: int = 0
    nan: int = 0
    gaps: dict[str, GapCount] = field(default_factory=dict)
    inbox: Inbox | None = None
    notes: Sequence[str] = ()

    def add(self, items: int, compute: float, latency: float) -> None:
        """Count one push: of ``items``, that took ``compute`` seconds and was late by ``latency``.

        A deadline is missed when the push was not done before the next one of its size is due.
        """
        self.items += items
        self.compute += compute
        self.latencies.add(latency)
        rate = self.manifest.input.rate
        self.misses += rate is not None and latency > items / rate

    def add_gap(self, gap: Gap) -> None:
        """Count what a source lost."""
        count = self.gaps.setdefault(gap.reason, GapCount())
        count.count += 1
        count.items += gap.items or 0
        count.seconds += gap.seconds or 0.0

    @property
    def seconds(self) -> float | None:
        """Seconds of input."""
        rate = self.manifest.input.rate
        return None if rate is None else self.items / rate

    @property
    def real_time_factor(self) -> float | None:
        """Seconds of compute for a second of input."""
        return self.compute / self.seconds if self.seconds else None

    def summary(self) -> Summary:
        """The report as plain data, for JSON."""
        return {
            "model": self.manifest.name,
            "items": self.items,
            "seconds": self.seconds,
            "lines": self.lines,
            "algorithmic_latency": algorithmic_latency(self.manifest, self.block),
            "compute_seconds": round(self.compute, 6),
            "real_time_factor": self.real_time_factor,
            "pushes": self.latencies.count,
            "push_ms": self.latencies.milliseconds(),
            "measured_from": "due time" if self.paced else "start of push",
            "deadline_misses": None if self.seconds is None else self.misses,
            "state_bytes": self.manifest.state_bytes,
            "records": self.records,
            "gaps": {reason: asdict(count) for reason, count in sorted(self.gaps.items())},
            "filled_items": self.filled,
            "passed_items": self.passed,
            "queue": None if self.inbox is None else self.inbox.counters(),
            "conversions": list(self.notes),
            "saves": self.saves,
            "nan_outputs": self.nan,
        }

    def text(self) -> str:
        """The report for people, a few lines."""
        amount = f"{self.items} items"
        if self.seconds is not None:
            amount = f"{self.seconds:.2f} s of input"
        factor = "" if self.real_time_factor is None else f", real-time factor {self.real_time_factor:.4f}"
        times = self.latencies.milliseconds()
        spread = "  ".join(f"{name.replace('_', '.')} {value:.3f}" for name, value in times.items())
        misses = "" if self.seconds is None else f"; {self.misses} deadline misses"
        since = "from due time" if self.paced else "each"
        return "\n".join(
            [
                f"{self.manifest.name}: {amount} in {self.compute:.3f} s of compute{factor}",
                latency_text(self.manifest, self.block),
                f"{self.latencies.count} pushes, ms {since}: {spread}{misses}",
                f"state {self.manifest.state_bytes} bytes; {self.lines} lines out",
                *([f"{self.nan} items of {self.manifest.outputs[0].name} are NaN"] if self.nan else []),
                *self._losses(),
            ]
        )

    def _losses(self) -> list[str]:
        """Of live sources: what is missing, and how full the queue was."""
        lines = []
        if self.gaps:
            gaps = ", ".join(f"{reason} {count}" for reason, count in sorted(self.gaps.items()))
            lines.append(f"gaps: {gaps}; {self.filled} items filled in, {self.passed} passed over")
        if self.inbox is not None:
            count = self.inbox.counters()
            most, room = count["high_water"], count["capacity"]
            lines.append(f"queue: {most} waited at most, room for {room}; {count['spilled']} spilled")
        return lines


def algorithmic_latency(manifest: Manifest, block: int) -> Summary:
    """Block, look-ahead and their sum in items and, with a clock, in milliseconds; and the hop.

    The first item of a block waits for the rest of it, so a block of one hop, the smallest, waits
    least; larger blocks cost less compute an item.
    """
    counts = {
        "hop": manifest.input.hop,
        "lookahead": manifest.lookahead,
        "total": block + manifest.lookahead,
        "block": block,
    }
    rate = manifest.input.rate
    summary: Summary = {f"{name}_items": count for name, count in counts.items()}
    if rate is not None:
        summary |= {f"{name}_ms": round(count * 1e3 / rate, 6) for name, count in counts.items()}
    return summary


def latency_text(manifest: Manifest, block: int) -> str:
    """The same as one line."""
    summary = algorithmic_latency(manifest, block)
    unit = "ms" if "hop_ms" in summary else "items"
    value = {name: summary[f"{name}_{unit}"] for name in ("hop", "lookahead", "total", "block")}
    return (
        f"algorithmic latency {value['total']:g} {unit} "
        f"(block {value['block']:g} + look-ahead {value['lookahead']:g}), hop {value['hop']:g} {unit}"
    )
