"""Export the networks that were trained on all ten people to the one file that ships with the package.

python examples/timeseries/export_model.py [--fold 7] [--out streamssm/models/wrist.onnx]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from wrist_data import CACHE, LABELS, RATE, DataError, load
from wrist_folds import networks, of_fold
from wrist_model import exportable

from streamssm.errors import StreamSSMError
from streamssm.export import OutputSpec, export
from streamssm.export.layers import StreamingLayer
from streamssm.manifest import EventRule, Manifest

HERE = Path(__file__).resolve().parent
BUILT_IN = HERE.parents[1] / "streamssm" / "models" / "wrist.onnx"
#: an exercise is named after a second above 0.6, and is over after a second below 0.4
EVENTS = EventRule("exercise", "exercise", onset=0.6, offset=0.4, min_on=1.0, min_off=1.0, every=True)


def export_networks(
    network: StreamingLayer,
    out: Path,
    example: np.ndarray | None = None,
    verify: bool = True,
    **notes: object,
) -> Manifest:
    """Write a network that gives probabilities to ``out``."""
    return export(
        network,
        out,
        kind="features",
        rate=float(RATE),
        outputs=[OutputSpec("exercise", "probability", LABELS)],
        name="wrist",
        block=1,
        events=EVENTS,
        description="Which of seven shoulder exercises a watch sees: a decision at every sample.",
        license="Apache-2.0; recordings: seglearn, BSD-3-Clause (examples/timeseries/MODEL_CARD.md)",
        front_end="raw ax, ay, az in g and wx, wy, wz in rad/s at 50 Hz; scaled by the first layer",
        example=example,
        verify=verify,
        provenance={"recipe": "examples/timeseries/train.toml"} | notes,
    )


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=BUILT_IN)
    parser.add_argument("--fold", default="all", help="all, or the number of the person it has not seen")
    parser.add_argument("--cache", type=Path, default=CACHE)
    args = parser.parse_args()
    try:
        example = load(args.cache)[0].x[:200]
        manifest = export_networks(exportable(of_fold(networks(), args.fold)), args.out, example)
    except (DataError, StreamSSMError, OSError) as error:
        print(f"export_model: {error}", file=sys.stderr)
        return 1
    size = args.out.stat().st_size
    print(f"{args.out}: {manifest.parameters} parameters, {size} bytes, sha256 {manifest.sha256}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
