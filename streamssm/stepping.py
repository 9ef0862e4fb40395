"""Steps a pool in a thread of its own, and tells an event loop what came of it.

What touches the state (opening, resetting, snapshots) takes turns with the steps, in the order in which it
was asked for. If a step fails, the streams are stepped apart until the one at fault is found; only that one
is closed.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from streamssm.errors import SnapshotError, UsageError

if TYPE_CHECKING:
    from streamssm.pool import Key, Pool
    from streamssm.stream import Result

    Ran = list[tuple[Key, Result | Exception]]
    Step = tuple[Ran, set[Key], float]

T = TypeVar("T")

_BURST = 0.001  # seconds that streams which are behind may hold back what others get
_PATIENCE = 0.25  # seconds until an idle stepping thread looks whether it is still wanted


class Stepper:
    """The threads of a pool.

    ``deliver(steps)`` is called in the event loop after a step, or a few short ones, with for each the
    results or failures by key, the keys whose stream has ended, and how long it took; ``die(error)`` if
    stepping itself failed.
    """

    def __init__(
        self,
        pool: Pool,
        deliver: Callable[[list[Step]], None],
        die: Callable[[BaseException], None],
    ):
        self.pool = pool
        self._deliver, self._die = deliver, die
        self._held: set[Key] = set()  # left out of steps, on purpose
        self._turn = _Turns()
        self._stopping = False
        self._loop = asyncio.get_running_loop()
        self._hands = ThreadPoolExecutor(1, thread_name_prefix="streamssm-pool")
        self._thread = threading.Thread(target=self._run, name="streamssm-steps", daemon=True)
        self._thread.start()

    @property
    def running(self) -> bool:
        """Whether steps are still taken."""
        return not self._stopping

    async def stop(self) -> None:
        """Let the step at hand finish, and end the threads."""
        self._stopping = True
        await asyncio.to_thread(self._thread.join)
        self._hands.shutdown(wait=True)

    def submit(self, function: Callable[..., T], *arguments: object) -> asyncio.Future[T]:
        """Run this between two steps, whether or not somebody waits for it."""

        def in_turn() -> T:
            with self._turn:
                return function(*arguments)

        return self._start(in_turn)

    async def call(self, function: Callable[..., T], *arguments: object) -> T:
        """Run this between two steps; once begun it is done, also if the waiting is cancelled."""
        return await asyncio.shield(self.submit(function, *arguments))

    async def beside(self, function: Callable[..., T], *arguments: object) -> T:
        """Run what does its own locking, and may take longer than steps should wait."""
        return await asyncio.shield(self._start(function, *arguments))

    def _start(self, function: Callable[..., T], *arguments: object) -> asyncio.Future[T]:
        if self._stopping:
            raise UsageError("the pool is not open; use it within 'async with'")
        return asyncio.wrap_future(self._hands.submit(function, *arguments), loop=self._loop)

    # To be called in turn.

    def open(self, key: Key, snapshot: bytes | None) -> None:
        """Give a stream a slot; one from a snapshot is held, for it may be ready at once."""
        if snapshot is not None:
            self._check(snapshot)
        self.pool.open(key, snapshot)
        if snapshot is not None:
            self.hold(key, True)

    def forget(self, key: Key) -> None:
        """Close a stream, if it is still there."""
        self._held.discard(key)
        if key in self.pool:
            self.pool.close(key)

    def replace(self, key: Key, snapshot: bytes | None) -> None:
        """Start anew, or from a snapshot, also after the end; one that does not fit changes nothing."""
        if snapshot is not None:
            self._check(snapshot)
        held = key in self._held
        self.forget(key)
        self.pool.open(key, snapshot)
        if held:
            self.hold(key, True)

    def hold(self, key: Key, held: bool) -> None:
        """Leave a stream out of steps, or no longer; also one that is only now to be opened."""
        (self._held.add if held else self._held.discard)(key)
        if key in self.pool:
            (self.pool.pause if held else self.pool.resume)(key)

    def _check(self, snapshot: bytes) -> None:
        from streamssm.snapshot import decode

        saved = decode(self.pool.model, snapshot)
        if saved.batch is not None or saved.state.ended:
            what = "that has ended" if saved.batch is None else f"of {saved.batch} sequences"
            raise SnapshotError(f"the snapshot is of a stream {what}; a slot takes one sequence that goes on")

    # The stepping thread.

    def _run(self) -> None:
        try:
            while not self._stopping:
                if self.pool.wait(_PATIENCE):
                    with self._turn:
                        self._post(self._deliver, self._steps())
        except BaseException as error:
            self._stopping = True
            self._post(self._die, error)

    def _steps(self) -> list[Step]:
        """A step; more of them while there are streams behind, for a moment: to hand over each result of
        theirs would take as long as to compute it."""
        until = time.perf_counter() + _BURST
        steps = [self._step()]
        while self.pool.behind and time.perf_counter() < until:
            steps.append(self._step())
        return steps

    def _step(self) -> Step:
        began = time.perf_counter()
        try:
            ran: Ran = list(self.pool.step())
        except Exception:
            ran = self._step_apart(list(self.pool))
        took = time.perf_counter() - began
        return ran, {key for key, _ in ran if key not in self.pool}, took

    def _step_apart(self, keys: Sequence[Key]) -> Ran:
        """Find the streams that fail, by halves; step the others and close these."""
        ran: Ran = []
        for key in keys:
            self.pool.pause(key)
        wanted = [key for key in keys if key not in self._held]
        groups = [wanted]
        while groups:
            group = groups.pop()
            failure = self._step_some(group, ran)
            if failure is not None and len(group) == 1:
                self.pool.close(group[0])
                ran.append((group[0], failure))
            elif failure is not None:
                groups += [group[: len(group) // 2], group[len(group) // 2 :]]
        for key in wanted:
            if key in self.pool:
                self.pool.resume(key)
        return ran

    def _step_some(self, keys: Sequence[Key], ran: Ran) -> Exception | None:
        for key in keys:
            self.pool.resume(key)
        try:
            ran += self.pool.step()
        except Exception as error:
            return error
        finally:
            for key in keys:
                if key in self.pool:
                    self.pool.pause(key)
        return None

    def _post(self, function: Callable[..., None], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:  # the loop was closed under us
            self._stopping = True


class _Turns:
    """A lock that is handed on in the order in which it was asked for: a loop that steps and steps cannot
    keep the others out."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._taken = False
        self._queue: deque[threading.Lock] = deque()

    def __enter__(self) -> None:
        with self._guard:
            if not self._taken:
                self._taken = True
                return
            mine = threading.Lock()
            mine.acquire()
            self._queue.append(mine)
        mine.acquire()

    def __exit__(self, *_: object) -> None:
        with self._guard:
            if self._queue:
                self._queue.popleft().release()
            else:
                self._taken = False
