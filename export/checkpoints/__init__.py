"""Published checkpoints as streaming layers: one family a file; :mod:`.family` says what it gives."""

from streamssm.export.checkpoints.loading import Checkpoint, load_checkpoint

__all__ = ["Checkpoint", "load_checkpoint"]
