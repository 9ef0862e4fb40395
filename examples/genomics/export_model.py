"""Export a checkpoint to the one file that ships with the package, its large matrices in int8.

python examples/genomics/export_model.py CHECKPOINT [--out streamssm/models/host.onnx] [--float32 FILE]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import calibrate
import numpy as np
from genomes import DEFAULT_CACHE, DataError
from host_model import HOP, VOCABULARY, exportable, load, rescale
from host_sources import SOURCES

from streamssm.errors import StreamSSMError
from streamssm.export import OutputSpec, export, quantize
from streamssm.manifest import Manifest

HERE = Path(__file__).resolve().parent
BLOCK_SIZE = 64  # divides the width of 192: nothing is padded
BUILT_IN = HERE.parents[1] / "streamssm" / "models" / "host.onnx"


def export_checkpoint(checkpoint: Path, out: Path, valid: Path) -> Manifest:
    """Write `out` with float32 weights; the calibration goes into the last layer.

    Raises:
        DataError: the checkpoint knows genomes of TEST (`ablation.py`), or is none.
    """
    network, _, notes = load(checkpoint)
    test = {part.group for source in SOURCES for part in source.parts if part.split == "test"}
    if known := sorted(test & set(notes.get("train", {}).get("weights", ()))):
        raise DataError(f"{checkpoint} was trained on TEST ({', '.join(known)}); it may not ship")
    scale, shift = calibrate.fit(network, valid)
    rescale(network, scale, shift)
    out.parent.mkdir(parents=True, exist_ok=True)
    return export(
        exportable(network),
        out,
        kind="tokens",
        vocabulary=VOCABULARY,
        alphabet="nucleotides",
        outputs=[OutputSpec("host", "probability", ("human",))],
        name="host",
        block=HOP,
        description="Host depletion: the probability that a read is human, after every 100 bases.",
        license="Apache-2.0; genomes and reads and their licences: examples/genomics/MODEL_CARD.md",
        example=np.random.default_rng(0).integers(0, 4, 10 * HOP),
        provenance={
            "recipe": "examples/genomics/train.toml, continue.toml, third.toml",
            "step": notes.get("step", 0),
            "seed": notes.get("train", {}).get("seed", 0),
            "calibration": [round(scale, 4), round(shift, 4)],
        },
    )


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--out", type=Path, default=BUILT_IN)
    parser.add_argument("--float32", type=Path, help="keep the file with float32 weights here")
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="folder of valid.npz")
    args = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as scratch:
            whole = args.float32 or Path(scratch) / "host.onnx"
            manifest = export_checkpoint(args.checkpoint, whole, args.cache / "valid.npz")
            quantize(str(whole), args.out, "int8", block_size=BLOCK_SIZE, per_layer=False)
    except (DataError, StreamSSMError, OSError) as error:
        print(f"export_model: {error}", file=sys.stderr)
        return 1
    print(f"{args.out}: {manifest.parameters} parameters, {args.out.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
