"""What a run writes and how it reads text, as asked or else as the model suggests."""

from __future__ import annotations

from streamssm.alphabet import Alphabet, Encoder, open_alphabet
from streamssm.errors import UsageError
from streamssm.model import Model
from streamssm.rows import Rows, make_rows
from streamssm.rows.decisions import DecisionRows
from streamssm.rows.tokens import TokenRows
from streamssm.scoring import can_score


def choose_rows(model: Model, emit: str | None, decide: float | None = None) -> tuple[Rows, Alphabet | None]:
    """The rows, and the alphabet of a model of tokens.

    Raises:
        UsageError: the model cannot give them, or the options contradict each other.
    """
    manifest, alphabet = model.manifest, open_alphabet(model.file)
    if decide is not None:
        if emit is not None:
            raise UsageError(f"--decide writes decisions, not {emit}; leave --emit {emit} out")
        return DecisionRows(manifest, decide), alphabet
    suggested = manifest.events is None and alphabet is not None and can_score(manifest)
    if emit == "tokens" or (emit is None and suggested):
        return TokenRows(model, alphabet), alphabet
    return make_rows(manifest, emit), alphabet


def choose_encoder(rows: Rows, alphabet: Alphabet | None) -> Encoder | None:
    """What turns text into tokens; bytes that need no text are read as they are."""
    if alphabet is None or (alphabet.name == "bytes" and not isinstance(rows, TokenRows)):
        return None
    return alphabet.encoder()
