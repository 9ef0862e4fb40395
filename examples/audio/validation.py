"""The validation mixtures: recordings that training does not use, in two fixed sets.

`near`: files held back from the packages of TRAIN. `far`: packages that TRAIN has nothing of.
Each is whole utterances with pauses in plain noise at 0 to 20 dB, three scenes of ten seconds a row.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from dataset import DataError, Pool
from mixing import PLAIN, Mixer, Planner, Table

from streamssm.export.metrics import roc_auc

ROWS, SCENES, SEED = 48, 3, 20_240
SNRS_DB = (0.0, 5.0, 10.0, 15.0, 20.0)
SETS = {"near": "valid", "far": "far"}


class Validation:
    """Mixtures on the device, scored as often as wanted."""

    def __init__(self, cache: Path, device: torch.device):
        self.device = device
        present = {name: stem for name, stem in SETS.items() if (cache / f"{stem}-speech.npz").exists()}
        if not present:
            raise DataError(
                f"no pools of validation in {cache}: run `python examples/audio/dataset.py` first"
            )
        self.sets = {name: list(_scenes(cache, stem, device)) for name, stem in present.items()}
        self.snr = np.tile(np.resize(SNRS_DB, ROWS), SCENES)

    def score(self, network: torch.nn.Module) -> dict[str, float]:
        """ROC-AUC of each set and at its ends; "valid" is the mean of the sets."""
        found = {}
        for name, scenes in self.sets.items():
            scores, labels, state = [], [], None
            for sound, truth in scenes:
                logits, state = network(sound, state)
                scores.append(logits[..., 0].float().cpu().numpy())
                labels.append(truth.cpu().numpy())
            scores, labels = np.concatenate(scores), np.concatenate(labels)
            found[name] = roc_auc(scores.ravel(), labels.ravel())
            for snr in (0.0, 10.0, 20.0):
                rows = self.snr == snr
                found[f"{name}_{snr:.0f}"] = roc_auc(scores[rows].ravel(), labels[rows].ravel())
        return {"valid": float(np.mean([found[name] for name in self.sets])), **found}


def _scenes(cache: Path, stem: str, device: torch.device):
    speech, noise = (Pool.load(cache / f"{stem}-{role}.npz") for role in ("speech", "noise"))
    mixer = Mixer(speech, noise, PLAIN, device)
    planner = Planner(Table(speech, 0.6), Table(noise, 0.35), PLAIN, ROWS, SEED)
    for scene in range(SCENES):
        plan = replace(planner[scene], snr=np.resize(np.float32(SNRS_DB), ROWS))
        yield mixer.mix(plan)
