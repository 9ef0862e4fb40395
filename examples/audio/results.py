"""What `evaluate.py --out` leaves: scores.json, whose head examples/gallery.py reads, and two pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import soundfile as sf

import streamssm

SPEECH = Path(__file__).with_name("speech.wav")
GOAL = 0.975


def write(result: dict, model: str, folder: Path) -> None:
    """scores.json, scores.png and live.png.

    Raises:
        ImportError: matplotlib is not here.
    """
    folder.mkdir(parents=True, exist_ok=True)
    picture = folder / "scores.png"
    _draw(result, picture)
    _draw_live(model, folder / "live.png")
    loaded = streamssm.load(model)
    head = {
        "model": loaded.manifest.name,
        "parameters": loaded.manifest.parameters,
        "bytes": loaded.path.stat().st_size,
        "metrics": _metrics(result),
        "plot": picture.name,
    }
    (folder / "scores.json").write_text(json.dumps(head | result, indent=1) + "\n")


def _metrics(result: dict) -> list[dict]:
    ours, *peers = result["misses"]
    rows = []
    for part, row in result["parts"].items():
        entry = {"name": f"ROC-AUC, {part}", "ours": row[ours]["auc"], "interval": row[ours]["interval"]}
        entry["peers"] = {peer: row[peer]["auc"] for peer in peers}
        if part == "0 to 20 dB":
            entry["goal"] = GOAL
        rows.append(entry)
    found = result["misses"]
    rows.append(
        {
            "name": "speech missed at 5 % false alarms",
            "ours": found[ours]["share"],
            "interval": found[ours]["interval"],
            "peers": {peer: found[peer]["share"] for peer in peers},
        }
    )
    for name, table, key in (
        ("onset latency, median ms", result["onset"], "median_ms"),
        ("onset latency, 90 % within ms", result["onset"], "p90_ms"),
    ):
        rows.append(
            {
                "name": name,
                "ours": table[ours][key],
                "peers": {p: table[p][key] for p in peers if table[p][key] is not None},
            }
        )
    cost = result["seconds_per_hour"]
    rows.append(
        {
            "name": "processor seconds for an hour of audio",
            "ours": cost[ours],
            "peers": {peer: cost[peer] for peer in peers},
        }
    )
    return rows


def _draw(result: dict, path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    names = list(result["misses"])
    snrs = [part for part in result["parts"] if part.endswith(" dB") and "to" not in part]
    others = [part for part in result["parts"] if part not in snrs and part != "0 to 20 dB"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), width_ratios=(1, 1.3))
    for place, name in enumerate(names):
        style = (
            {"color": "black", "linewidth": 2.5, "zorder": 3} if place == 0 else {"color": f"C{place - 1}"}
        )
        values = [result["parts"][part][name]["auc"] for part in snrs]
        left.plot([int(part.split()[0]) for part in snrs], values, marker="o", label=name, **style)
        shift = (place - (len(names) - 1) / 2) * 0.13
        right.bar(
            [i + shift for i in range(len(others))],
            [1 - result["parts"][part][name]["auc"] for part in others],
            0.12,
            color=style["color"],
        )
    low, high = zip(*(result["parts"][part][names[0]]["interval"] for part in snrs), strict=True)
    left.fill_between(
        [int(part.split()[0]) for part in snrs], low, high, color="black", alpha=0.15, linewidth=0
    )
    left.set(
        xlabel="SNR, dB", ylabel="ROC-AUC", title="held-out speakers, languages and noises", ylim=(0.66, 1)
    )
    left.legend(fontsize=8, ncols=2, loc="lower left")
    left.grid(alpha=0.3)
    right.set_xticks(
        range(len(others)), [part.replace(" (", "\n(") for part in others], fontsize=7, rotation=20
    )
    right.set(
        ylabel="1 - ROC-AUC (lower is better)", title="0 to 20 dB, by speech and by noise", ylim=(0, 0.3)
    )
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_live(model: str, path: Path) -> None:
    """speech.wav pushed in chunks of 10 ms: what came out when."""
    from matplotlib import pyplot as plt

    sound, rate = sf.read(SPEECH, dtype="float32")
    loaded = streamssm.load(model)
    stream, chunks = loaded.stream(), sound[: len(sound) // 160 * 160].reshape(-1, 160)
    said = np.concatenate([stream.push(chunk) for chunk in chunks])
    with loaded.run(str(SPEECH), emit="events") as rows:
        events = [(row["event"], row["time"]) for row in rows]
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(11, 3.6), sharex=True)
    top.plot(np.arange(len(sound)) / rate, sound, color="0.4", linewidth=0.4)
    top.set(ylabel="samples", title="speech.wav, live in chunks of 10 ms")
    bottom.plot(np.arange(1, len(said) + 1) / 100, said[:, 0], color="black", linewidth=1.2)
    bottom.set(
        xlabel="seconds", ylabel="probability of speech", ylim=(-0.02, 1.02), xlim=(0, len(sound) / rate)
    )
    for (_, start), (_, end) in zip(events[::2], events[1::2], strict=True):
        for axis in (top, bottom):
            axis.axvspan(start, end, color="C2", alpha=0.2, linewidth=0)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
