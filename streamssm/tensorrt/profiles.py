"""What an engine is optimised for: the blocks and the number of sequences of its calls."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from streamssm.errors import UsageError
from streamssm.manifest import Manifest

#: of a model without a clock, such as one of tokens: a step, a short push, a prompt
_TOKEN_BLOCKS = (1, 16, 64)
_MOST_BATCH, _MOST_BLOCK = 1 << 16, 1 << 24
#: a size that an input leaves open
OPEN = -1


@dataclass(frozen=True)
class Calls:
    """The calls that engines are built for: one profile for each block, of 1 to ``batch`` sequences."""

    blocks: tuple[int, ...]
    batch: int = 1

    @property
    def range(self) -> tuple[int, int, int]:
        """Least, usual and most sequences."""
        return 1, self.batch, self.batch


def calls_for(manifest: Manifest, blocks: str | Sequence[int] | None = None, batch: int = 1) -> Calls:
    """The calls that a user asks for, as "1,16,64"; by default those that the manifest suggests: the
    model's block, and a step, a push and a prompt of a model without a clock.

    Raises:
        UsageError: a block is no multiple of the hop or far too large, or something is no positive number.
    """
    hop = manifest.input.hop
    if blocks is None:
        tokens = manifest.input.rate is None and manifest.input.kind == "tokens"
        asked: Iterable[int] = {manifest.block, *_TOKEN_BLOCKS} if tokens else {manifest.block, hop}
    else:
        asked = _numbers(blocks) if isinstance(blocks, str) else blocks
    for block in (found := tuple(sorted(set(asked)))):
        if block < 1 or block % hop:
            raise UsageError(f"--block {block} is no positive multiple of the model's hop of {hop} items")
        if block > _MOST_BLOCK:
            raise UsageError(f"--block {block} is more than {_MOST_BLOCK} items; give a smaller one")
    if not found:
        raise UsageError("no block is given; write them as 1,16,64")
    if not 1 <= batch <= _MOST_BATCH:
        raise UsageError(f"--batch {batch} is not between 1 and {_MOST_BATCH}")
    return Calls(found, batch)


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--block {text!r} is no list of numbers; write it as 1,16,64") from None


def shapes_of(
    inputs: Mapping[str, Sequence[int]], data: str, block: int, batch: int
) -> dict[str, tuple[int, ...]]:
    """Shapes of the inputs of a call: what they leave open is the number of sequences, first, and of the
    input ``data`` the block, second."""
    found = {}
    for name, dims in inputs.items():
        shape = list(dims)
        if shape and shape[0] == OPEN:
            shape[0] = batch
        if name == data and shape[1] == OPEN:
            shape[1] = block
        found[name] = tuple(shape)
    return found
