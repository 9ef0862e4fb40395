"""Typed errors. Each message says the value seen and the remedy, and each class carries
the exit code that the command line documents: 1 runtime, 2 usage, 3 bad model file,
4 a gate failed."""

from __future__ import annotations


class StreamSSMError(Exception):
    """Base of every error that streamssm raises on purpose."""

    exit_code = 1


class InputError(StreamSSMError, ValueError):
    """A chunk was refused whole; the stream is as it was."""


class StreamEndedError(StreamSSMError, RuntimeError):
    """A flushed or closed stream was pushed again."""


class StreamTornError(StreamSSMError, RuntimeError):
    """A signal cut a step short that was overwriting the state; reset or restore the stream."""


class PoolFullError(StreamSSMError, RuntimeError):
    """Every slot of a pool is taken; nothing was opened."""


class QueueFullError(StreamSSMError, RuntimeError):
    """More items wait than a stream of a pool may hold; nothing was taken."""


class SnapshotError(StreamSSMError, ValueError):
    """A snapshot is damaged, of a newer layout, or of another model."""


class BackendError(StreamSSMError, RuntimeError):
    """The backend is missing or cannot run the model."""


class SourceError(StreamSSMError):
    """A source cannot be opened or read."""


class ServerError(StreamSSMError):
    """A server cannot be started or reached, or it refused or ended the stream."""


class OutputError(StreamSSMError):
    """A file cannot be written."""


class UsageError(StreamSSMError, ValueError):
    """An argument is out of range or does not fit the model."""

    exit_code = 2


class ModelFileError(StreamSSMError, ValueError):
    """The file is not a usable streamssm model."""

    exit_code = 3


class ManifestError(ModelFileError):
    """The manifest cannot be read or contradicts itself or the graph."""


class IntegrityError(ModelFileError):
    """The file's content does not match the hash recorded in it."""


class GateError(StreamSSMError):
    """A check that decides pass or fail has failed."""

    exit_code = 4


class ExportError(StreamSSMError, ValueError):
    """A model cannot be exported; nothing was written."""


class LayerError(StreamSSMError, ValueError):
    """A layer was built or called with arguments it cannot honour."""
