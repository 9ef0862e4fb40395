"""Export a checkpoint to the one file that ships with the package.

python examples/audio/export_model.py [CHECKPOINT] [--out streamssm/models/vad.onnx]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import soundfile as sf
from dataset import DataError
from model import exportable, load

from streamssm.errors import StreamSSMError
from streamssm.export import OutputSpec, export
from streamssm.manifest import EventRule, Manifest

HERE = Path(__file__).resolve().parent
BUILT_IN = HERE.parents[1] / "streamssm" / "models" / "vad.onnx"
BLOCK = 160  # one frame of 10 ms: the soonest answer
EVENTS = EventRule(output="speech", label="speech", onset=0.6, offset=0.4, min_on=0.06, min_off=0.3)


def export_checkpoint(checkpoint: Path, out: Path) -> Manifest:
    """Write `out`; the golden sample is one second of the README's recording."""
    network, config, notes = load(checkpoint)
    recording, rate = sf.read(HERE / "speech.wav", dtype="float32")
    out.parent.mkdir(parents=True, exist_ok=True)
    front_end = (
        f"log-mel {config.n_mels}, window {config.window}, hop 160, {config.f_min:g}-{config.f_max:g} Hz"
    )
    return export(
        exportable(network),
        out,
        kind="samples",
        rate=rate,
        outputs=[OutputSpec("speech", "probability", ("speech",))],
        name="vad",
        block=BLOCK,
        events=EVENTS,
        description="Streaming voice activity: the probability of speech in every 10 ms.",
        license="Apache-2.0; training recordings and their licences: examples/audio/MODEL_CARD.md",
        front_end=front_end,
        example=np.ascontiguousarray(recording[rate : 2 * rate]),
        provenance={
            "recipe": "examples/audio/train.toml, then tune.toml, long.toml and grow.toml",
            "step": notes["step"],
            "seed": notes["train"]["seed"],
        },
    )


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, nargs="?", default=HERE / "vad.pt")
    parser.add_argument("--out", type=Path, default=BUILT_IN)
    args = parser.parse_args()
    try:
        manifest = export_checkpoint(args.checkpoint, args.out)
    except (DataError, StreamSSMError, OSError) as error:
        print(f"export_model: {error}", file=sys.stderr)
        return 1
    size = args.out.stat().st_size
    print(f"{args.out}: {manifest.parameters} parameters, {size} bytes, sha256 {manifest.sha256}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
