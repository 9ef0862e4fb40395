"""Ours and every peer, side by side, in one run: tables, JSON and pictures.

    python benchmarks/peers.py --setup          environments (llama.cpp is compiled) and model files, once
    python benchmarks/peers.py                  everything, about 25 minutes on one core
    python benchmarks/peers.py --quick          the tiny models, about 3 minutes
    python benchmarks/peers.py --only 'mamba-130m/int*' --only vad --peers ours,llama
    python benchmarks/peers.py --only vad --keep      again, beside what was measured before on this machine

Sections: MODEL/PRECISION for each model and precision, and steps, vad, age. A peer that cannot be
installed or cannot do a thing is listed with the reason. Exits 4 on a missed bar with --strict.
"""

from __future__ import annotations

import argparse
import datetime
import fnmatch
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from sidebyside import age, bars, plan, report, rounds, streams  # noqa: E402  found beside this file
from sidebyside.shapes import SHAPES  # noqa: E402
from sidebyside.worker import WorkerError  # noqa: E402

CACHE, RESULTS = HERE.parent / ".cache" / "peers", HERE / "results"


def sections(quick: bool, only: list[str]) -> list[str]:
    """What to run, in order."""
    models = [name for name, shape in SHAPES.items() if shape.tiny or not quick or only]
    names = [f"{model}/{precision}" for model in models for precision in plan.PRECISIONS]
    names += ["steps", "vad", "age"]
    return [name for name in names if not only or any(fnmatch.fnmatch(name, each) for each in only)]


def host() -> dict[str, str]:
    """The machine, in words."""
    processor = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return {"processor": processor, "system": platform.system(), "python": platform.python_version()}


def make_files(bench: rounds.Bench, names: list[str], chosen: set[str]) -> None:
    """Every peer's files of the models, which a run then finds; what fails will be in its tables."""
    for name in (name for name in names if "/" in name):
        model, precision = name.split("/")
        for entry in plan.entries(precision, chosen):
            try:
                rounds.make_files(bench, SHAPES[model], entry)
                bench.say(f"{name}: {entry.title} ready")
            except WorkerError as failure:
                bench.say(f"{name}: {entry.title}: {str(failure)[:200]}")


def kept(folder: Path) -> dict[str, Any]:
    """The results in a folder, if they are of this machine."""
    try:
        results: dict[str, Any] = json.loads((folder / "peers.json").read_text())
    except (OSError, ValueError):
        return {}
    return results if results.get("host") == host() else {}


def run(bench: rounds.Bench, names: list[str], chosen: set[str], before: dict[str, Any]) -> dict[str, Any]:
    """All sections; one that breaks down is reported, and the others go on."""
    done = set(before.get("sections", []))
    results: dict[str, Any] = before | {
        "sections": [name for name in sections(False, []) if name in done.union(names)],
        "host": host(),
        "date": datetime.date.today().isoformat(),
        "groups": dict(before.get("groups", {})),
        "broken": {name: why for name, why in before.get("broken", {}).items() if name not in names},
    }
    for name in names:
        bench.say(name)
        try:
            if "/" in name:
                model, precision = name.split("/")
                group = plan.entries(precision, chosen)
                results["groups"][name] = rounds.run_group(bench, SHAPES[model], precision, group)
            elif name == "steps":
                results[name] = streams.steps(bench, chosen)
            else:
                results[name] = streams.vad(bench) if name == "vad" else age.run(bench)
        except Exception as error:
            results["broken"][name] = f"{type(error).__name__}: {error}"
            bench.say(f"  broke down: {results['broken'][name]}")
    results["bars"] = [line.result() for line in bars.bars(results)]
    return results


def write(results: dict[str, Any], folder: Path, console: Console) -> None:
    """JSON, Markdown, pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "peers.json").write_text(json.dumps(results, indent=1) + "\n")
    (folder / "peers.md").write_text(report.markdown(results))
    written = [folder / "peers.json", folder / "peers.md"]
    try:
        from sidebyside.plots import draw
    except ImportError as error:
        console.print(f"no pictures: {error}; pip install 'streamssm\\[bench]'")
    else:
        written += draw(results, folder)
    console.print("written: " + ", ".join(os.path.relpath(path) for path in written))


def show(results: dict[str, Any], console: Console) -> None:
    """The same tables on the terminal."""
    for each in report.tables(results):
        table = Table(*each.header, title=each.title)
        for row in each.rows:
            table.add_row(*row)
        console.print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--setup", action="store_true", help="only make environments and model files")
    parser.add_argument("--quick", action="store_true", help="the tiny models, fewer rounds")
    parser.add_argument("--only", action="append", default=[], metavar="GLOB", help="sections to run")
    parser.add_argument(
        "--keep", action="store_true", help="keep the other sections of the results there are"
    )
    parser.add_argument("--peers", metavar="NAMES", help=f"among {','.join(plan.PEERS)}; ours is always in")
    parser.add_argument("--strict", action="store_true", help="exit 4 if a bar is missed")
    parser.add_argument("--core", type=int, help="the core to measure (default: the last one allowed)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="compiler processes of --setup")
    parser.add_argument(
        "--out", type=Path, help=f"default {os.path.relpath(RESULTS)}; of --quick, in the cache"
    )
    arguments = parser.parse_args()
    chosen = set(arguments.peers.split(",")) | {"ours"} if arguments.peers else set(plan.PEERS)
    if unknown := chosen - set(plan.PEERS):
        parser.error(f"no such peer: {', '.join(sorted(unknown))}; there are {', '.join(plan.PEERS)}")
    console = Console(stderr=True)
    core = arguments.core if arguments.core is not None else max(os.sched_getaffinity(0))
    bench = rounds.Bench(
        CACHE, Path(sys.executable), core, arguments.quick, lambda text: console.print(text, highlight=False)
    )
    wanted = [plan.PEERS[key].environment for key in plan.PEERS if key in chosen]
    wanted = list(dict.fromkeys([name for name in wanted if name] + ["silero"]))
    if not arguments.setup:
        wanted = [name for name in wanted if not bench.environments.known(name)]
    bench.environments.set_up(wanted, bench.say, arguments.jobs)
    names = sections(arguments.quick, arguments.only)
    if not names:
        parser.error(f"no section is called {arguments.only}; there are {', '.join(sections(False, []))}")
    if arguments.setup:
        make_files(bench, names, chosen)
        return 0
    folder = arguments.out or (CACHE / "quick" if arguments.quick else RESULTS)
    results = run(bench, names, chosen, kept(folder) if arguments.keep else {})
    # a pipe has no width of its own
    show(results, Console() if sys.stdout.isatty() else Console(width=200))
    write(results, folder, console)
    missed = any(line["status"] == "MISS" for line in results["bars"])
    return 4 if missed and arguments.strict else 0


if __name__ == "__main__":
    sys.exit(main())
