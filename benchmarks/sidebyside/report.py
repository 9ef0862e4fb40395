"""The results as tables: one list of them, printed and written as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sidebyside import bars as bar
from sidebyside.plan import BITS
from sidebyside.shapes import SHAPES, parameters, weight_bytes
from sidebyside.workers.machine import GEMM_FLOPS, READ_BYTES

#: below this share of the core, something else ran on it and the figures are worth less
QUIET = 0.9


@dataclass(frozen=True)
class Table:
    """A title, a line of explanation, and cells."""

    title: str
    note: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]


def tables(results: dict[str, Any]) -> Iterator[Table]:
    """Every table that the results can fill."""
    if bar.bars(results):
        yield _bars(results)
    for group in results.get("groups", {}).values():
        yield _group(group)
    if any(_last_rows(group) for group in results.get("groups", {}).values()):
        yield _last(results["groups"])
    if reasons := _reasons(results):
        yield reasons
    if large := [g for g in results.get("groups", {}).values() if g["machine"]["cases"]["decode"]]:
        yield _floors(large)
    if "steps" in results:
        yield _steps(results["steps"])
    if "vad" in results:
        yield _vad(results["vad"])
    if "age" in results:
        yield _age(results["age"])


def markdown(results: dict[str, Any]) -> str:
    """The page."""
    parts = ["# Side by side\n", _preamble(results)]
    for table in tables(results):
        lines = [f"## {table.title}\n"]
        if table.note:
            lines.append(f"{table.note}\n")
        lines.append("| " + " | ".join(table.header) + " |")
        lines.append("| " + " | ".join("---" for _ in table.header) + " |")
        lines += ["| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in table.rows]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _preamble(results: dict[str, Any]) -> str:
    host = results["host"]
    cases = [
        case
        for group in results.get("groups", {}).values()
        for row in group["rows"].values()
        for case in row["cases"].values()
        if "processor_share" in case
    ]
    lowest = min((case["processor_share"] for case in cases), default=1.0)
    quiet = (
        ""
        if lowest >= QUIET
        else (
            f" **Not a quiet machine**: a peer had as little as {lowest:.0%} of the core; the ratios are of "
            "medians taken in turn, the times are worth less."
        )
    )
    threads = max((case["threads"] for case in cases), default=1)
    versions = {}
    for group in results.get("groups", {}).values():
        for row in group["rows"].values():
            versions |= row["opened"].get("versions", {})
    text = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    return (
        f"{host['processor']}, {host['system']}, Python {host['python']}, {results['date']}. One thread "
        f"each (seen at work in a process: at most {threads}), pinned to one core, one process at work at a "
        "time, in rounds. Ratios are theirs / ours, medians over "
        "rounds; above 1 is in our favour. Weights are random and the same for all; every peer's float32 "
        "logits were compared with a float64 reference first, and no ratio is given for a peer that failed."
        f"{quiet}\n\n"
        f"{text}\n"
    )


def _bars(results: dict[str, Any]) -> Table:
    rows = []
    for line in bar.bars(results):
        least = f"{'at most' if line.at_most else 'at least'} {line.bar:g}x"
        seen = "-" if line.seen is None else f"{line.seen:.3f}x"
        rows.append((line.what, line.against, least, seen, line.status, line.note))
    return Table("What must be reached", "", ("", "against", "bar", "seen", "", ""), rows)


def time_text(nanoseconds: float) -> str:
    """In the unit that suits."""
    if nanoseconds >= 1e9:
        return f"{nanoseconds / 1e9:.2f} s"
    if nanoseconds >= 1e6:
        return f"{nanoseconds / 1e6:.1f} ms"
    return f"{nanoseconds / 1e3:.1f} us"


def _group(group: bar.Group) -> Table:
    shape = SHAPES[group["model"]]
    rows = [_row(group, key, row) for key, row in group["rows"].items()]
    header = ("", "one item", "p99", "ratio", "push of 16", "ratio", "512 items", "ratio", "MB", "error")
    note = (
        f"{parameters(shape):,} weights. Logits of every item. MB: resident with the model open, and what "
        "of it the interpreter and its libraries take. Error: largest difference from float64 logits over "
        "the largest logit, one item a call; with random weights it says nothing of a quantised model's "
        "quality."
    )
    return Table(f"{group['model']}, {group['precision']}", note, header, rows)


def _row(group: bar.Group, key: str, row: dict[str, Any]) -> tuple[str, ...]:
    if row["why"] is not None:
        return (row["title"], row["why"][:90], *[""] * 8)
    cells = [row["title"]]
    for case in ("decode", "push16", "prefill"):
        cells += _cells(group, key, row, case)
    memory = f"{row['memory']['now']:.0f} ({row['opened']['bare_mb']:.0f})"
    return (*cells, memory, f"{row['errors']['1']:.1e}")


def _cells(group: bar.Group, key: str, row: dict[str, Any], case: str) -> list[str]:
    found = row["cases"].get(case)
    wide = 3 if case == "decode" else 2
    if found is None or "median_ns" not in found:
        return ["no", *[""] * (wide - 1)]
    if case == "prefill":
        value = f"{512e9 / found['median_ns']:,.0f}/s"
    else:
        value = time_text(found["median_ns"])
    cells = [value] + ([time_text(found["p99_ns"])] if case == "decode" else [])
    if not row["exact"].get(case, False):
        return [*cells, "INEXACT"]
    if key == "ours" or found["ratio"] is None:
        return [*cells, ""]
    return [*cells, f"{found['ratio']:.2f}x"]


def _last_rows(group: bar.Group) -> list[tuple[str, ...]]:
    rows = []
    for key, row in group["rows"].items():
        cells = [f"{group['model']}, {group['precision']}", row["title"]]
        timed = False
        for case in ("push16-last", "prefill-last"):
            found = bar.case_of(group, key, case)
            exact = row["exact"].get(case, False)
            timed |= found is not None and key != "ours"
            cells += [time_text(found["median_ns"]) if found else "no"]
            cells += [
                "INEXACT"
                if found and not exact
                else f"{found['ratio']:.2f}x"
                if found and found["ratio"]
                else ""
            ]
        if timed:
            rows.append(tuple(cells))
    return rows


def _last(groups: dict[str, bar.Group]) -> Table:
    note = (
        "Less work than above: theirs give the last item's logits alone, against ours that give every item's."
    )
    rows = [row for group in groups.values() for row in _last_rows(group)]
    return Table("The last logits only", note, ("", "", "push of 16", "ratio", "512 items", "ratio"), rows)


def _reasons(results: dict[str, Any]) -> Table | None:
    """What was not timed, each reason once with the models and cases that it holds for."""
    found: dict[tuple[str, str], list[str]] = {}
    for name, group in results.get("groups", {}).items():
        for row in group["rows"].values():
            if row["why"] is not None:
                found.setdefault((row["title"], row["why"]), []).append(name)
            for case, seen in row["cases"].items():
                if "why" in seen and not case.endswith("-last"):
                    found.setdefault((row["title"], seen["why"]), []).append(f"{name} {case}")
    rows = [(title, ", ".join(where), why[:160]) for (title, why), where in found.items()]
    rows += [(name, "the whole section", why[:160]) for name, why in results.get("broken", {}).items()]
    return Table("Not timed, and why", "", ("", "", ""), rows) if rows else None


def _floors(groups: list[bar.Group]) -> Table:
    rows = []
    for group in groups:
        shape, precision = SHAPES[group["model"]], group["precision"]
        read = statistics.median(group["machine"]["cases"]["decode"]["read"])
        floors = bar.floor_ns(group)
        core = group["machine"]["cases"]["prefill"]
        gemm = min(statistics.median(core[name]) for name in ("gemm-ort", "gemm-numpy"))
        fraction = bar.gemm_fraction(group)
        multiple = bar.floor_ratio(group)
        theirs = bar.floor_ratio(group, "llama")
        rows.append(
            (
                f"{shape.name}, {precision}",
                f"{weight_bytes(shape, BITS[precision]) / 1e6:.0f} MB",
                f"{2 * shape.state_bytes / 1e6:.1f} MB",
                f"{READ_BYTES / read:.1f} GB/s",
                time_text(statistics.median(floors)),
                "-" if multiple is None else f"{multiple:.2f}x",
                "-" if theirs is None else f"{theirs:.2f}x",
                f"{GEMM_FLOPS / gemm:.0f} GFLOP/s",
                "-" if fraction is None else f"{fraction:.0%}",
            )
        )
    note = (
        "Floor: the bytes of the weights (no scales) over the bandwidth at which this core reads 1 GiB. The "
        "state is read and written besides. GEMM: float32, 512 x 768 x 3072, the faster of ONNX Runtime and "
        "numpy."
    )
    header = (
        "",
        "weights",
        "state to and fro",
        "bandwidth",
        "floor",
        "ours",
        "llama.cpp",
        "GEMM",
        "our prefill",
    )
    return Table("Floors of this core", note, header, rows)


def _steps(steps: dict[str, Any]) -> Table:
    rows = []
    for model, found in steps.items():
        for key, row in found.items():
            if "why" in row:
                rows.append((model, key, row["why"][:90], *[""] * 6))
                continue
            times = [time_text(row[name]) for name in ("median_ns", "p99_ns", "p99.9_ns", "max_ns")]
            spread = f"{row['p99_ns'] / row['median_ns']:.2f}"
            rows.append((model, key, f"{row['steps']:,}", *times, spread, f"{row['processor_share']:.0%}"))
    note = (
        "Fixed work: one small product of numpy, again and again: its jitter is the machine's own. The share "
        "of the core is the least of the slices."
    )
    header = ("", "", "steps", "p50", "p99", "p99.9", "max", "p99 / p50", "core")
    return Table("Jitter of single steps", note, header, rows)


def _vad(vad: dict[str, Any]) -> Table:
    rows = []
    for key in ("ours", "silero"):
        row = vad[key]
        if "us_per_step" not in row:
            rows.append((key, row.get("why", "-")[:90], "", ""))
            continue
        step = f"{row['us_per_step']:.1f} us for {row['facts']['seconds'] * 1e3:g} ms"
        rows.append((key, step, f"{row['us_per_second']:.0f} us", ", ".join(row["versions"].values())))
    return Table("Voice activity detection", "", ("", "a step", "a second of audio", "versions"), rows)


def _age(age: dict[str, Any]) -> Table:
    rows = []
    for line in age["lines"].values():
        points = {point["age"]: point for point in line["points"]}
        cells = [time_text(points[mark]["median_ns"]) if mark in points else "" for mark in age["marks"]]
        kept = f"{line['points'][-1]['bytes'] / 1e6:.2f} MB" if line["points"] else ""
        rows.append((line["title"], *cells, kept, line.get("stopped", line.get("why", ""))[:90]))
    agree = age["transformers_agree"]
    note = (
        "One step, float32, after so many items of one stream; the median of the last steps. The transformer "
        "has the width, depth and about the weights of the tiny Mamba, and one head, with which its kernels "
        "are fastest. llama.cpp's cache is filled by real tokens; PyTorch's is set to the age with random "
        "ones. " + ("" if agree is None else f"The two give the same logits within {agree:.0e}.")
    )
    header = ("", *(f"{mark:,}" for mark in age["marks"]), "kept at the last", "")
    return Table("Latency against the age of a stream", note, header, rows)
