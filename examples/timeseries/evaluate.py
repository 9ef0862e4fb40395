"""The table: exercises named by ours and by the peers, every person by models that have not seen them.

    python examples/timeseries/evaluate.py [--out examples/timeseries/results]

Ten folds, each without one person. After 1, 2, 4 and 8 seconds of a window that starts every second, from
a fresh state, and over whole series. Intervals are bootstrapped over people. The networks of the folds are
in `networks/`, the peers' answers in `results/peers.npz` (`peers.py` makes them); the model that ships has
seen everybody, so that it is only asked how fast it is.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from wrist_data import CACHE, LABELS, RATE, SECONDS, DataError, Series, load, windows
from wrist_folds import Answers, ask, fold_models, networks
from wrist_scores import confusion, f1, interval

import streamssm
from streamssm.atomic import write_bytes

RESULTS = Path(__file__).resolve().parent / "results"
NAMES = {
    "minirocket": "MiniRocket + ridge",
    "forest": "random forest",
    "minirocket_10k": "MiniRocket, 10k kernels",
    "minirocket_mirror": "MiniRocket, both arms",
}
GOAL, SHORT = 0.03, "minirocket"  # how far above which peer after two seconds
UNSEEN = slice(2, None)  # people 3 to 10: those of 1 and 2 were looked at while the network was designed


def main() -> int:
    """Entry point."""
    args = _arguments()
    torch.set_num_threads(1)
    try:
        series = load(args.cache)
        peers = dict(np.load(args.out / "peers.npz"))
        answers = ask(series, fold_models(networks()), lambda line: print(line, file=sys.stderr))
        tables = confusions(series, answers, peers)
        report = {**describe(args.model), "metrics": metrics(tables), "plot": "wrist.png"}
        report["differences"] = differences(tables)
        report["by_person_after_2_s"] = [round(float(s), 4) for s in f1(tables["ours_2s"])]
        report["taken_for_after_2_s"] = tables["ours_2s"].sum(0).tolist()
        report["cost"] = cost(args.model, series)
        write_bytes(args.out / "scores.json", (json.dumps(report, indent=1) + "\n").encode())
        plot(args.out / "wrist.png", answers, tables)
    except (DataError, OSError, ImportError) as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 1
    print(text(report))
    return 0


def confusions(
    series: list[Series], answers: Answers, peers: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Tables [people, label, chosen] by "WHO_WHEN": ours and each peer's, after so many seconds ("2s"), of
    whole series ("whole"), and ours at every sample of whole series ("every")."""
    tables: dict[str, np.ndarray] = {}
    subject = np.array([one.subject for one in series])
    label = np.array([one.label for one in series])
    for seconds in SECONDS:
        there = answers.after(seconds * RATE)
        chosen = answers.windows[there, seconds * RATE - 1].argmax(-1)
        tables[f"ours_{seconds}s"] = confusion(answers.label[there], chosen, answers.person[there])
        _, labels, number = windows(series, seconds * RATE)
        for name in NAMES:
            if (key := f"{name}_{seconds}s") in peers:
                tables[key] = confusion(labels, peers[key].astype(int), subject[number])
    _, _, number = windows(series, 2 * RATE)
    for name in NAMES:
        if f"{name}_2s" in peers:  # a vote of its windows
            votes = np.zeros((len(series), len(LABELS)), int)
            np.add.at(votes, (number, peers[f"{name}_2s"].astype(int)), 1)
            tables[f"{name}_whole"] = confusion(label, votes.argmax(1), subject)
    tables["ours_whole"] = confusion(label, np.array([p.mean(0).argmax() for p in answers.whole]), subject)
    length = [len(one.x) for one in series]
    every = np.concatenate([p.argmax(-1) for p in answers.whole])
    tables["ours_every"] = confusion(np.repeat(label, length), every, np.repeat(subject, length))
    return tables


def metrics(tables: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """The rows of the table: our score, its interval, the peers' scores."""
    titles = {f"{s}s": f"macro-F1 after {s} s" for s in SECONDS}
    titles |= {"whole": "macro-F1 of whole series", "every": "macro-F1 at every sample of whole series"}
    rows = [_row(title, key, tables) for key, title in titles.items()]
    apart = {name: table[UNSEEN] for name, table in tables.items()}
    rows.append(_row("macro-F1 after 2 s, people 3 to 10 alone", "2s", apart))
    ours, theirs = tables["ours_2s"], tables[f"{SHORT}_2s"]
    gained = {"name": f"gain over {NAMES[SHORT]} after 2 s", "ours": round(_score(ours) - _score(theirs), 4)}
    return [*rows, {**gained, "interval": _rounded(interval(ours, theirs)), "peers": {}, "goal": GOAL}]


def _row(title: str, key: str, tables: Mapping[str, np.ndarray]) -> dict[str, Any]:
    ours = tables[f"ours_{key}"]
    peers = {NAMES[p]: _score(tables[f"{p}_{key}"]) for p in NAMES if f"{p}_{key}" in tables}
    row = {"name": title, "ours": _score(ours), "interval": _rounded(interval(ours)), "peers": peers}
    return row | {"goal": None}


def differences(tables: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Ours less each peer's macro-F1, with the interval on the same draws of people."""
    found = []
    for key, theirs in tables.items():
        name, _, when = key.rpartition("_")
        if name in NAMES:
            ours = tables[f"ours_{when}"]
            around = _rounded(interval(ours, theirs))
            gain = round(_score(ours) - _score(theirs), 4)
            found.append({"peer": NAMES[name], "when": when, "ours_less_theirs": gain, "interval": around})
    return found


def _score(table: np.ndarray) -> float:
    return round(float(f1(table.sum(0))), 4)


def _rounded(pair: tuple[float, float]) -> list[float]:
    return [round(value, 4) for value in pair]


def describe(name: str) -> dict[str, Any]:
    """The model that ships."""
    model = streamssm.load(name)
    size = Path(model.path).stat().st_size
    return {"model": model.manifest.name, "parameters": model.manifest.parameters, "bytes": size}


def cost(name: str, series: list[Series]) -> dict[str, float]:
    """Microseconds for a sample at one thread: pushed one by one, and in blocks of a second."""
    x, result = series[0].x, {}
    for block in (1, RATE):
        stream = streamssm.load(name).stream(block=block)
        stream.push(x[:RATE])
        began = time.perf_counter()
        for at in range(RATE, len(x) - block, block):
            stream.push(x[at : at + block])
        done = (len(x) - block - RATE) // block * block
        result[f"us_per_sample_block_{block}"] = round((time.perf_counter() - began) / done * 1e6, 1)
    return result


def plot(path: Path, answers: Answers, tables: Mapping[str, np.ndarray]) -> None:
    """Macro-F1 against the seconds that were seen."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    places = np.arange(10, 401, 10)
    found = []
    for place in places:
        there = answers.after(place)
        chosen = answers.windows[there, place - 1].argmax(-1)
        found.append(confusion(answers.label[there], chosen, answers.person[there]))
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    name = "streamssm wrist, at every sample"
    axes.plot(places / RATE, [f1(table.sum(0)) for table in found], color="#0b6", lw=2, label=name)
    low, high = zip(*(interval(table) for table in found), strict=True)
    axes.fill_between(places / RATE, low, high, color="#0b6", alpha=0.15, lw=0)
    for peer, marker, colour, shift in (("minirocket", "o", "#c50", -0.04), ("forest", "s", "#36c", 0.04)):
        theirs = [tables[f"{peer}_{s}s"] for s in SECONDS]
        values = np.array([f1(table.sum(0)) for table in theirs])
        around = np.abs(np.array([interval(table) for table in theirs]).T - values)
        axes.errorbar(
            np.array(SECONDS) + shift, values, around, fmt=marker, color=colour, capsize=3, label=NAMES[peer]
        )
    axes.set(xlabel="seconds since the window began", ylabel="macro-F1, ten people left out in turn")
    axes.set(xlim=(0, 8.2), ylim=(0.5, 1.0), title="Seven shoulder exercises from a watch")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=110)


def text(report: Mapping[str, Any]) -> str:
    """The table for a terminal."""
    lines = [f"{report['model']}: {report['parameters']} parameters, {report['bytes']} bytes", ""]
    for row in report["metrics"]:
        goal = "" if row["goal"] is None else f"  goal {row['goal']}"
        lines.append(f"{row['name']:44} {row['ours']:.4f} {_brackets(row['interval'])}{goal}")
        lines += [f"    {name:40} {score:.4f}" for name, score in row["peers"].items()]
    lines += ["", "ours less theirs, on the same draws of people"]
    for row in report["differences"]:
        gain = f"{row['ours_less_theirs']:+.4f} {_brackets(row['interval'])}"
        lines.append(f"    {row['peer']:30} {row['when']:9} {gain}")
    people = " ".join(f"{score:.3f}" for score in report["by_person_after_2_s"])
    spent = ", ".join(f"{name} {value}" for name, value in report["cost"].items())
    return "\n".join([*lines, "", f"by person after 2 s: {people}", f"cost: {spent}"])


def _brackets(pair: list[float]) -> str:
    return f"[{pair[0]:.3f}, {pair[1]:.3f}]"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument(
        "--model", default="wrist", help="built-in name or .onnx file, for its size and speed"
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
