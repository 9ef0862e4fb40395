"""Opens the source of a run, with a queue before it where one was asked for."""

from __future__ import annotations

from streamssm.errors import UsageError
from streamssm.live.inbox import open_inbox
from streamssm.live.source import ForwardedSource, LiveSource
from streamssm.running.place import path_of
from streamssm.sources import Request, Source, open_source
from streamssm.sources.base import closed_on_error
from streamssm.sources.sim import SimSource


def open_queued(uri: str, request: Request, chunk: int) -> Source:
    """The source, read ahead by a thread where what comes too fast shall be dropped or spilled.

    A pipe makes its writer wait, and a file waits for its reader, so nothing is needed for ``block``.

    Raises:
        SourceError: it cannot be opened, or does not fit the model.
        UsageError: the options contradict each other or the data.
    """
    source = open_source(uri, request)
    policy = request.queue.policy
    if policy == "block" or isinstance(source, LiveSource):
        return source
    with closed_on_error(source):
        if request.input.kind == "tokens":
            raise UsageError(f"--on-overrun {policy}: a text is complete or it is none; leave it out")
        if source.replayable and not isinstance(source, SimSource):
            raise UsageError(f"--on-overrun {policy}: {source.name} waits for its reader; leave it out")
        if path_of(uri).is_dir():
            raise UsageError(f"--on-overrun {policy}: {source.name} is many recordings; play them one by one")
        inbox = open_inbox(request, request.input.shape)
        return ForwardedSource(source, inbox, min(chunk, inbox.capacity))
