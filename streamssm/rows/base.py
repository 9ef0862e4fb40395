"""What a stream's outputs say, as rows: plain data, one a line of JSON or a line of a table.

What is in a row depends on item numbers alone, not on how pushes fell. A row is never changed after it was
made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

from streamssm.outputs import Outputs

Row = dict[str, Any]
Kind = Literal["text", "integer", "number", "value", "flag"]


class Column(NamedTuple):
    """A key that rows may have. A number is float64; a value is what a model gave, float32, as nested lists
    of ``shape``."""

    name: str
    kind: Kind
    shape: tuple[int, ...] = ()


class Rows(Protocol):
    """Makes rows from outputs, and can be saved in the middle of a stream.

    ``kind`` says what they are: "events", "items", "tokens", "decisions" or "audio".
    """

    kind: str

    @property
    def columns(self) -> Sequence[Column]:
        """Every key that its rows may have, in order; what the loop adds (record, gaps) is not among them."""

    def push(self, outputs: Outputs) -> list[Row]:
        """The rows that these outputs complete."""

    def flush(self) -> list[Row]:
        """The rows that the end of the stream completes; then the next item is number 0 again."""

    def pass_over(self, items: int) -> None:
        """Input items are missing here, whole hops of them: what is pushed next comes so much later."""

    def state(self) -> dict[str, Any]:
        """What is remembered, as plain data."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state`; SnapshotError if it is not one."""
