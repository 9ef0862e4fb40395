"""What must be reached, held against what was seen."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from sidebyside import plan
from sidebyside.shapes import SHAPES, flops, weight_bytes
from sidebyside.workers.machine import GEMM_FLOPS, READ_BYTES

Group = dict[str, Any]


@dataclass(frozen=True)
class Bar:
    """One line: a ratio that must be at least (or, for a floor, at most) so much."""

    section: str
    what: str
    against: str
    bar: float
    seen: float | None
    at_most: bool = False
    note: str = ""

    @property
    def status(self) -> str:
        """PASS or MISS, or that it was not measured."""
        if self.seen is None:
            return "not seen"
        good = self.seen <= self.bar if self.at_most else self.seen >= self.bar
        return "PASS" if good else "MISS"

    def result(self) -> dict[str, Any]:
        """For the JSON file."""
        return asdict(self) | {"status": self.status}


def case_of(group: Group | None, key: str, case: str) -> dict[str, Any] | None:
    """What was timed of a row, if anything was."""
    found = group["rows"].get(key, {}).get("cases", {}).get(case) if group else None
    return found if found and "median_ns" in found else None


def ratio(group: Group | None, key: str, case: str) -> float | None:
    """How many times ours a peer takes; None if it is inexact or was not timed."""
    found = case_of(group, key, case)
    return found["ratio"] if found and group["rows"][key]["exact"].get(case, False) else None


def exact_ratios(group: Group | None, case: str) -> dict[str, float]:
    """All of them at the group's own precision, by the peer's title."""
    found = {}
    for key, row in (group["rows"] if group else {}).items():
        value = ratio(group, key, case)
        if key != "ours" and value is not None and row["precision"] == group["precision"]:
            found[row["title"]] = value
    return found


def floor_ns(group: Group, case: str = "decode") -> list[float] | None:
    """Round by round: the time to read this precision's weights once at the core's bandwidth."""
    read = group["machine"]["cases"].get(case, {}).get("read")
    if not read:
        return None
    size = weight_bytes(SHAPES[group["model"]], plan.BITS[group["precision"]])
    return [nanoseconds * size / READ_BYTES for nanoseconds in read]


def floor_ratio(group: Group | None, key: str = "ours", case: str = "decode") -> float | None:
    """How many times the floor a row takes."""
    found = case_of(group, key, case)
    floors = floor_ns(group, case) if group else None
    if not found or not floors:
        return None
    return statistics.median(time / floor for time, floor in zip(found["rounds_ns"], floors, strict=False))


def within_reach(group: Group | None, key: str) -> str:
    """What the floor, the state's traffic included, leaves to gain over a peer."""
    found = case_of(group, key, "decode")
    floors = floor_ns(group) if group else None
    if not found or not floors:
        return ""
    shape = SHAPES[group["model"]]
    weights = weight_bytes(shape, plan.BITS[group["precision"]])
    grown = 1 + 2 * shape.state_bytes / weights
    ratios = [time / floor / grown for time, floor in zip(found["rounds_ns"], floors, strict=False)]
    return f"reading weights and state alone would give {statistics.median(ratios):.1f}x"


def gemm_fraction(group: Group | None, key: str = "ours") -> float | None:
    """The matrix part of a prefill over the core's own rate for such products."""
    found = case_of(group, key, "prefill")
    core = group["machine"]["cases"].get("prefill", {}) if group else {}
    if not found or "gemm-ort" not in core:
        return None
    fastest = min(statistics.median(core[name]) for name in ("gemm-ort", "gemm-numpy"))
    rate = GEMM_FLOPS / fastest
    return flops(SHAPES[group["model"]], 512) / found["median_ns"] / rate


def bars(results: dict[str, Any]) -> list[Bar]:
    """Every line of the table, in its order; of the sections that were run."""
    groups = results.get("groups", {})
    lines = [*_large(groups), *_prefill(groups), *_tiny(groups), *_streams(results)]
    return [line for line in lines if line.section in results.get("sections", [line.section])]


def _best(found: dict[str, float]) -> tuple[float | None, str]:
    """The peer that comes closest to ours."""
    if not found:
        return None, ""
    title = min(found, key=found.__getitem__)
    return found[title], f"closest: {title}"


def _large(groups: dict[str, Group]) -> Iterator[Bar]:
    for model in ("mamba-130m", "mamba2-130m"):
        group = groups.get(f"{model}/fp32")
        seen, note = _best(exact_ratios(group, "decode"))
        yield Bar(f"{model}/fp32", f"{model} decode fp32", "every peer", 1.0, seen, note=note)
        yield Bar(
            f"{model}/fp32",
            f"{model} decode fp32",
            "bandwidth floor",
            plan.FLOOR,
            floor_ratio(group),
            at_most=True,
        )
    for (model, precision), least in plan.DECODE.items():
        group = groups.get(f"{model}/{precision}")
        theirs = {"int8": "llama.cpp Q8_0", "int4": "llama.cpp Q4_0"}[precision]
        yield Bar(
            f"{model}/{precision}",
            f"{model} decode {precision}",
            theirs,
            least,
            ratio(group, "llama", "decode"),
            note=within_reach(group, "llama"),
        )
    for model in ("mamba-130m", "mamba2-130m"):
        for precision in plan.PRECISIONS:
            seen = ratio(groups.get(f"{model}/{precision}"), "llama", "push16")
            yield Bar(
                f"{model}/{precision}", f"{model} push of 16 {precision}", "llama.cpp", plan.PUSH_LARGE, seen
            )


def _prefill(groups: dict[str, Group]) -> Iterator[Bar]:
    for model, least in plan.PREFILL.items():
        for precision in plan.PRECISIONS:
            group = groups.get(f"{model}/{precision}")
            seen, note = _best(exact_ratios(group, "prefill"))
            fraction = gemm_fraction(group)
            if fraction is not None:
                note += f"; {fraction:.0%} of the core's GEMM rate"
            yield Bar(
                f"{model}/{precision}",
                f"{model} prefill 512 {precision}",
                "best exact peer",
                least,
                seen,
                note=note,
            )


def _tiny(groups: dict[str, Group]) -> Iterator[Bar]:
    for model, least in plan.TINY_STEP.items():
        group = groups.get(f"{model}/fp32")
        yield Bar(f"{model}/fp32", f"{model} step", "llama.cpp", least, ratio(group, "llama", "decode"))
        seen, note = _best(exact_ratios(group, "decode"))
        yield Bar(f"{model}/fp32", f"{model} step", "fastest peer", 1.0, seen, note=note)
    for model, least in plan.TINY_PUSH.items():
        seen = ratio(groups.get(f"{model}/fp32"), "llama", "push16")
        yield Bar(f"{model}/fp32", f"{model} push of 16", "llama.cpp", least, seen)


def _streams(results: dict[str, Any]) -> Iterator[Bar]:
    for model in plan.TINY_STEP:
        found = results.get("steps", {}).get(model, {}).get("ours", {})
        seen = found.get("p99_ns", 0) / found["median_ns"] if "median_ns" in found else None
        note = ""
        if found.get("steps"):
            note = f"{found['steps']:,} steps with at least {found['processor_share']:.0%} of the core"
        yield Bar("steps", f"{model} step p99 / p50", "", plan.JITTER, seen, at_most=True, note=note)
    vad = results.get("vad", {})
    yield Bar("vad", "vad, per second of audio", "Silero", 1.0, vad.get("ratio"))
