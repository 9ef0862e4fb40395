"""The peers: MiniRocket with a ridge classifier, and a random forest, on the same windows and folds.

    python examples/timeseries/peers.py [--out examples/timeseries/results/peers.npz]

Each window length has classifiers of its own, trained on windows of that length of the nine other people
and asked about those of the tenth. `evaluate.py` reads the file. Half an hour on one core.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from wrist_data import CACHE, RATE, SECONDS, SUBJECTS, DataError, Series, load, windows
from wrist_mirror import mirrored

from streamssm.atomic import replacing

OUT = Path(__file__).resolve().parent / "results" / "peers.npz"
#: score [windows, classes] of the held-out windows, from (train x, train labels, test x)
Classifier = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def minirocket(kernels: int) -> Classifier:
    """MiniRocket (Dempster et al. 2021) and a ridge classifier, its strength by cross-validation."""

    def classify(x: np.ndarray, labels: np.ndarray, asked: np.ndarray) -> np.ndarray:
        from aeon.transformations.collection.convolution_based import MiniRocket
        from sklearn.linear_model import RidgeClassifierCV
        from sklearn.preprocessing import StandardScaler

        transform, scale = MiniRocket(n_kernels=kernels, random_state=0), StandardScaler()
        features = scale.fit_transform(transform.fit_transform(x.transpose(0, 2, 1)))
        ridge = RidgeClassifierCV(alphas=np.logspace(-3, 3, 10)).fit(features, labels)
        return ridge.decision_function(scale.transform(transform.transform(asked.transpose(0, 2, 1))))

    return classify


def forest(x: np.ndarray, labels: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """A random forest of 500 trees on statistics of each axis."""
    from sklearn.ensemble import RandomForestClassifier

    trees = RandomForestClassifier(500, random_state=0, n_jobs=1).fit(statistics(x), labels)
    return trees.predict_proba(statistics(asked))


def statistics(x: np.ndarray) -> np.ndarray:
    """x [W, T, 6] -> [W, 90]: moments, extremes, quartiles, mean change, energy, and correlations of axes."""
    centred = x - x.mean(1, keepdims=True)
    spread = x.std(1) + 1e-6
    parts = [x.mean(1), spread, x.min(1), x.max(1), *np.percentile(x, [10, 25, 50, 75, 90], axis=1)]
    parts += [(centred**3).mean(1) / spread**3, (centred**4).mean(1) / spread**4]
    parts += [np.abs(np.diff(x, axis=1)).mean(1), (x**2).mean(1) ** 0.5]
    upper = np.triu_indices(x.shape[2], 1)
    together = np.einsum("wti,wtj->wij", centred, centred) / x.shape[1]
    parts.append((together / (spread[:, :, None] * spread[:, None]))[:, upper[0], upper[1]])
    return np.concatenate(parts, axis=1)


def with_mirror(classify: Classifier) -> Classifier:
    """The same, trained on the windows and on their mirror images: what that augmentation alone does."""

    def doubled(x: np.ndarray, labels: np.ndarray, asked: np.ndarray) -> np.ndarray:
        return classify(np.concatenate([x, mirrored(x)]), np.concatenate([labels, labels]), asked)

    return doubled


#: name -> (classifier, the seconds of a window for which it is run)
PEERS: dict[str, tuple[Classifier, tuple[int, ...]]] = {
    "minirocket": (minirocket(2000), SECONDS),
    "forest": (forest, SECONDS),
    "minirocket_10k": (minirocket(10_000), (2,)),
    "minirocket_mirror": (with_mirror(minirocket(2000)), (2,)),
}


def choices(series: list[Series], classify: Classifier, seconds: int) -> np.ndarray:
    """The class [W] of every window of ``seconds``, by the classifier that has not seen its person."""
    x, labels, number = windows(series, seconds * RATE)
    subject = np.array([one.subject for one in series])[number]
    chosen = np.zeros(len(x), np.int8)
    for held_out in SUBJECTS:
        test = subject == held_out
        chosen[test] = classify(x[~test], labels[~test], x[test]).argmax(1)
        print(f"  subject {held_out}: {(chosen[test] == labels[test]).mean():.3f}", flush=True)
    return chosen


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    try:
        series = load(args.cache)
        kept = dict(np.load(args.out)) if args.out.exists() else {}
        for name, (classify, lengths) in PEERS.items():
            for seconds in lengths:
                if (key := f"{name}_{seconds}s") not in kept:
                    print(key, flush=True)
                    kept[key] = choices(series, classify, seconds)
                    with replacing(args.out) as scratch, scratch.open("wb") as file:
                        np.savez_compressed(file, **kept)
    except (DataError, OSError, ImportError) as error:
        print(f"peers: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
