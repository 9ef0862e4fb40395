"""A stock ONNX Runtime, with nothing of ours imported, steps our files and gets our numbers.

The environment is made from nothing with only onnxruntime and numpy, once with the version
the tests are pinned to and once with the oldest that the package admits.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import streamssm
from streamssm import tolerance

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"

STEPPER = """
import json, sys
import numpy as np, onnxruntime
assert not {"streamssm", "torch", "onnx"} & set(sys.modules)
path, samples, result = sys.argv[1:]
session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
manifest = json.loads(session.get_modelmeta().custom_metadata_map["streamssm"])
hop, x = manifest["input"]["hop"], np.load(samples)
names = [output["name"] for output in manifest["outputs"]]
states = {s["name"]: np.zeros([1, *s["shape"]], s.get("dtype", "float32")) for s in manifest["states"]}
followers = [s["next"] for s in manifest["states"]]
steps = []
for start in range(0, len(x), hop):
    feeds = {manifest["input"]["name"]: x[None, start : start + hop], **states}
    y, *following = session.run([names[0], *followers], feeds)
    states = dict(zip(states, following))
    steps.append(y[0])
np.save(result, np.concatenate(steps))
print(onnxruntime.__version__)
"""


@pytest.mark.parametrize(
    ("requirement", "weights"),
    [("onnxruntime", ("float32", "int8", "int4")), ("onnxruntime==1.20.1", ("float32", "int4"))],
)
def test_bare_environment_steps_the_built_in_model(
    tmp_path: Path, requirement: str, weights: tuple[str, ...]
) -> None:
    environment = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    python = environment / "bin" / "python"
    pinned = ["-c", CONSTRAINTS] if requirement == "onnxruntime" else []
    pip = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, *pinned, requirement, "numpy"], check=True)
    for dtype in weights:
        model = _model(dtype, tmp_path)
        hop = model.manifest.input.hop
        x = (0.1 * np.random.default_rng(0).standard_normal(100 * hop)).astype(np.float32)
        np.save(tmp_path / "x.npy", x)
        files = [model.path, tmp_path / "x.npy", tmp_path / "y.npy"]
        run = subprocess.run(
            [python, "-I", "-c", STEPPER, *files], check=True, capture_output=True, text=True, cwd=tmp_path
        )
        ours = model.scan(x, block=hop)
        theirs = np.load(tmp_path / "y.npy")
        assert theirs.shape == ours.shape
        assert tolerance.within(theirs, ours, dtype), (run.stdout, tolerance.error(theirs, ours))


def _model(weights: str, folder: Path) -> streamssm.Model:
    if weights == "float32":
        return streamssm.load("vad")
    pytest.importorskip("onnx")
    from streamssm.export import quantize

    quantize("vad", folder / f"{weights}.onnx", weights, per_layer=False)
    return streamssm.load(folder / f"{weights}.onnx")
