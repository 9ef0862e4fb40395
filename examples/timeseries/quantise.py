"""What int8 and int4 weights cost: the models of all ten folds, exported, quantised and run in the runtime.

    python examples/timeseries/quantise.py [--weights int8] [--json FILE]

The model that ships has seen everybody, so that its decisions say nothing: each fold's networks are made a
file as it was (`export_model.py`), `streamssm quantize`d with the defaults, and asked about their person.
The bar: every macro-F1 (after 1, 2, 4 and 8 s, of whole series and at every sample of them) within 0.003 of
float32; exit code 1 where one is missed. Some minutes.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from export_model import export_networks
from wrist_data import CACHE, RATE, SUBJECTS, DataError, load
from wrist_folds import Model, ask, networks, of_fold, scores
from wrist_model import Sequential, exportable
from wrist_scores import furthest

import streamssm
from streamssm.errors import StreamSSMError
from streamssm.export import quantize

BAR, BATCH = 0.003, 64


def files(
    found: Mapping[str, Sequence[Sequential]], kinds: Sequence[str], folder: Path
) -> dict[str, list[Path]]:
    """The file of each fold for each kind of weights, with float32 first."""
    made: dict[str, list[Path]] = {kind: [] for kind in ("float32", *kinds)}
    for person in SUBJECTS:
        path = folder / f"fold{person}.onnx"
        export_networks(exportable(of_fold(found, str(person))), path, verify=False)
        made["float32"].append(path)
        for kind in kinds:
            target = folder / f"fold{person}_{kind}.onnx"
            quantize(path, target, kind, per_layer=False, data=np.zeros((RATE, 6), np.float32))
            made[kind].append(target)
        print(f"subject {person}: files made", file=sys.stderr)
    return made


def runtime_model(path: Path) -> Model:
    """Probabilities of windows by the runtime, in blocks of a second."""
    model = streamssm.load(path)

    def run(x: np.ndarray) -> np.ndarray:
        parts = [model.scan(x[at : at + BATCH], block=RATE) for at in range(0, len(x), BATCH)]
        return np.concatenate([np.asarray(part) for part in parts])

    return run


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", nargs="+", default=["int8"], choices=("int8", "int4"))
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--json", type=Path, help="also write the scores here")
    args = parser.parse_args()
    try:
        series = load(args.cache)
        with tempfile.TemporaryDirectory() as scratch:
            made = files(networks(), args.weights, Path(scratch))
            found = {}
            for kind, paths in made.items():
                models = {p: runtime_model(path) for p, path in zip(SUBJECTS, paths, strict=True)}
                answers = ask(series, models, lambda line: print(line, file=sys.stderr))
                found[kind] = scores(answers, series) | {"bytes": paths[0].stat().st_size}
    except (DataError, StreamSSMError, OSError) as error:
        print(f"quantise: {error}", file=sys.stderr)
        return 1
    for kind, row in found.items():
        print(f"{kind:8} " + "  ".join(f"{name} {value}" for name, value in row.items()))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    return int(furthest(found) > BAR)


if __name__ == "__main__":
    sys.exit(main())
