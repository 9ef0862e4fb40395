"""What a quantised file is judged on: input, and with labels the task's own measure."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from streamssm.errors import InputError, UsageError
from streamssm.export.metrics import accuracy, roc_auc
from streamssm.manifest import Manifest

Array = np.ndarray
Result = Array | Mapping[str, Array]
#: takes what ``Model.scan`` gives for the whole set, and the labels; larger is better
Measure = Callable[[Result, Array], float]

IGNORED = -1


@dataclass(frozen=True)
class Metric:
    """A measure and its name."""

    name: str
    measure: Measure


@dataclass(frozen=True)
class Data:
    """Sequences x [B, T, *item_shape], and labels [B, F], one for each output item, if there are any."""

    x: Array
    labels: Array | None = None


def read_data(data: Any, manifest: Manifest) -> Data:
    """An array x, a pair (x, labels), or a file with either, one sequence or many.

    Raises:
        UsageError: the file cannot be read, or x is no set of such items.
    """
    if isinstance(data, str | os.PathLike):
        data = read_arrays(Path(data))
    x, labels = data if isinstance(data, tuple) else (data, None)
    x = np.asarray(x)
    rank = 2 + len(manifest.input.shape)
    if x.ndim not in (rank - 1, rank) or x.shape[x.ndim - rank + 2 :] != manifest.input.shape or not x.size:
        wanted = ", ".join(["T", *map(str, manifest.input.shape)])
        raise UsageError(f"the data have shape {list(x.shape)}; give x as [{wanted}] or [B, {wanted}]")
    single = x.ndim == rank - 1
    labels = None if labels is None else np.asarray(labels)
    return Data(x[None], None if labels is None else labels[None]) if single else Data(x, labels)


def read_arrays(path: Path) -> Array | tuple[Array, Array]:
    """An .npy file: one array. An .npz file: ``x``, and ``labels`` if it holds them.

    Raises:
        UsageError: it is neither.
    """
    try:
        with path.open("rb") as file:
            head = file.read(6)
        if not head.startswith((b"\x93NUMPY", b"PK")):  # numpy would call it a pickle
            raise UsageError(f"{path} is no .npy or .npz file: it begins with {head!r}; write it with numpy")
        stored = np.load(path, allow_pickle=False)
        if isinstance(stored, np.ndarray):
            return stored
        with stored:
            if "x" not in stored:
                raise UsageError(
                    f"{path} holds {', '.join(stored)}; it must hold x, and labels to score with"
                )
            return (stored["x"], stored["labels"]) if "labels" in stored else stored["x"]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(
            f"{path} is no .npy or .npz file that can be read: {error}; write it with numpy"
        ) from error


def choose_metric(metric: str | Measure | None, data: Data, manifest: Manifest) -> Metric | None:
    """The measure asked for, or the one that suits the first output; None without labels.

    ``auc`` is for one column of probabilities or logits, ``accuracy`` for several. Labels of -1 are
    not scored.

    Raises:
        UsageError: a metric without labels, an unknown one, or one that does not fit the output.
    """
    if data.labels is None:
        if metric is not None:
            raise UsageError("a metric needs labels; give data as (x, labels) or an .npz file with both")
        return None
    if callable(metric):
        return Metric(getattr(metric, "__name__", "metric"), metric)
    output = manifest.outputs[0]
    columns = int(np.prod(output.shape[-1:], dtype=int))
    scores = len(output.shape) <= 1 and output.kind in ("probability", "logits")
    name = metric or (("auc" if columns == 1 else "accuracy") if scores else None)
    if name is None:
        raise UsageError(
            f"output {output.name!r} is {output.kind}, which no built-in metric scores; give a callable"
        )
    if name not in ("auc", "accuracy") or (name == "auc") != (columns == 1):
        raise UsageError(
            f"metric {name!r} does not fit output {output.name!r} of {columns} columns; "
            "auc scores one column, accuracy several"
        )
    return Metric(name, lambda result, labels: _scored(name, output.name, result, labels))


def _scored(name: str, output: str, result: Result, labels: Array) -> float:
    scores = result if isinstance(result, np.ndarray) else result[output]
    if scores.shape[:2] != labels.shape:
        raise InputError(
            f"labels have shape {list(labels.shape)}, output {output!r} has {list(scores.shape[:2])} items; "
            "give one label for each output item"
        )
    used = labels != IGNORED
    classes = scores.shape[-1] if name == "accuracy" else 2
    strange = labels[used & ~np.isin(labels, np.arange(classes))]
    if strange.size:
        raise InputError(
            f"labels hold {strange[0]}; {name} of {output!r} takes 0 to {classes - 1}, and {IGNORED} where "
            "nothing is known"
        )
    value = roc_auc(scores[used], labels[used]) if name == "auc" else accuracy(scores[used], labels[used])
    if np.isnan(value):
        raise InputError("the labels hold one class only, or nothing to score; give examples of both")
    return value
