"""One answer for a whole sequence, as soon as it is sure enough: of which class a read is, or a gesture."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from streamssm.errors import SnapshotError, UsageError
from streamssm.manifest import Manifest, Output
from streamssm.outputs import Array, Outputs
from streamssm.rows.base import Column, Row


class DecisionRows:
    """A row for the sequence: ``{"label", "probability", "index", "decided"}``.

    It comes with the first output item at which a class reaches ``threshold``; if none ever does it comes
    at the end, with the likeliest class of the last item and ``decided`` false. ``index`` is how many input
    items had been read for it. Classes are the columns of the model's probabilities or logits (of which a
    softmax is taken); a single column is that class against its opposite, "not LABEL".

    Where the sequence ends within the input of an output item, the rest is made up. Such an item decides
    nothing; a sequence too short for any other has no label.

    Raises:
        UsageError: the model has no such output, or the threshold is none.
    """

    kind = "decisions"
    columns = (
        Column("label", "text"),
        Column("probability", "number"),
        Column("index", "integer"),
        Column("decided", "flag"),
    )

    def __init__(self, manifest: Manifest, threshold: float):
        output = _output(manifest)
        classes = math.prod(output.shape)
        if not 1 / max(classes, 2) < threshold <= 1:
            raise UsageError(
                f"--decide {threshold:g}: give a probability above {1 / max(classes, 2):g}, that of a guess, "
                "up to 1"
            )
        labels = output.labels or tuple(f"{output.name}[{place}]" for place in range(classes))
        self._labels = labels if classes > 1 else (labels[0], f"not {labels[0]}")
        self._output, self._logits = output.name, output.kind == "logits"
        # compared as float32, so that a probability that prints as the threshold reaches it
        self._threshold = float(np.float32(threshold))
        self._ratio, self._lookahead = output.ratio, manifest.lookahead
        self._read = self._items = 0  # of the input, and of the output
        self._last: list[float] | None = None  # probabilities of the latest item
        self._decided = False

    @property
    def decided(self) -> bool:
        """Whether the row was given: what follows of the sequence changes nothing."""
        return self._decided

    def count(self, items: int) -> None:
        """So many input items are pushed next; without it ``index`` is counted from the output alone."""
        self._read += items

    def push(self, outputs: Outputs) -> list[Row]:
        """The row, if one of these items decides."""
        first, items = self._items, outputs[self._output]
        self._items += len(items)
        items = items[: max(0, self._whole() - first)]
        if self._decided or not len(items):
            return []
        probabilities = self._probabilities(items)
        reached = np.flatnonzero((probabilities >= self._threshold).any(axis=1))
        if not len(reached):
            self._last = probabilities[-1].tolist()
            return []
        self._decided = True
        place = int(reached[0])
        return [self._row(probabilities[place].tolist(), self._needed(first + place), True)]

    def flush(self) -> list[Row]:
        """The row of a sequence that was not decided; without a label if no item was whole."""
        index = self._read or self._needed(self._items - 1)
        rows = [] if self._decided else [self._row(self._last, index, False)]
        self._read = self._items = 0
        self._last, self._decided = None, False
        return rows

    def pass_over(self, items: int) -> None:
        """Missing items are counted as read."""
        up, down = self._ratio
        self._read += items
        self._items += items * up // down

    def state(self) -> dict[str, Any]:
        """Counts, and the latest probabilities."""
        return {"read": self._read, "items": self._items, "last": self._last, "decided": self._decided}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue with the next item."""
        if set(state) != set(self.state()):
            raise SnapshotError("the snapshot holds no decision; it was saved without --decide")
        self._read, self._items = int(state["read"]), int(state["items"])
        self._last, self._decided = state["last"], bool(state["decided"])

    def _whole(self) -> int:
        """How many output items have all of their own input; what they look ahead at may be missing."""
        up, down = self._ratio
        return self._read * up // down if self._read else self._items

    def _needed(self, item: int) -> int:
        """Input items without which output item number ``item`` is not known, of those that there are."""
        up, down = self._ratio
        needed = -(-(item + 1) * down // up) + self._lookahead if item >= 0 else 0
        return min(needed, self._read) if self._read else needed

    def _row(self, probabilities: list[float] | None, index: int, decided: bool) -> Row:
        label = probability = None
        if probabilities is not None:
            place = int(np.argmax(probabilities))
            label = self._labels[place]
            probability = float(str(np.float32(probabilities[place])))  # its shortest decimals
        return {"label": label, "probability": probability, "index": index, "decided": decided}

    def _probabilities(self, items: Array) -> Array:
        """``[n, classes]`` of an output ``[n, *shape]``."""
        values = items.reshape(len(items), -1).astype(np.float64)
        if values.shape[1] == 1:
            first = 1 / (1 + np.exp(-values)) if self._logits else values
            return np.hstack([first, 1 - first]).astype(np.float32)
        if self._logits:
            values = np.exp(values - values.max(axis=1, keepdims=True))
            values /= values.sum(axis=1, keepdims=True)
        return values.astype(np.float32)


def _output(manifest: Manifest) -> Output:
    """The output that speaks of classes: the one of the event rule, or the only one."""
    found = [output for output in manifest.outputs if output.kind in ("probability", "logits")]
    rule = manifest.events
    if rule is not None:
        found = [output for output in found if output.name == rule.output] or found
    if len(found) != 1:
        names = ", ".join(output.name for output in found) or "none"
        raise UsageError(f"--decide needs one output of probabilities or logits, {manifest.name} has {names}")
    return found[0]
