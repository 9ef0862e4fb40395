"""What a library of TensorRT says while it builds: its log, how far it is; and how it is stopped."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

#: told what is being done, how much of it is done, and how much there is
Progress = Callable[[str, int, int], None]


def logger(module: Any) -> Any:
    """A logger of the library's kind that remembers the last error and counts the kernels of an engine;
    warnings go to the logger ``streamssm``."""
    import logging

    class Log(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.last = ""
            self.kernels: int | None = None

        def log(self, severity: Any, message: str) -> None:
            if severity in (module.ILogger.ERROR, module.ILogger.INTERNAL_ERROR):
                self.last = message.strip()
            elif severity == module.ILogger.WARNING:
                logging.getLogger("streamssm").info("%s: %s", module.__name__, message.strip())
            elif message.startswith("Layers:"):
                self.kernels = _kernels(message)

    return Log()


def _kernels(message: str) -> int | None:
    """How many of the layers that the library lists are kernels; those that only order streams are none."""
    layers = [line for line in message.splitlines() if line.startswith("Name: ") and "LayerType: " in line]
    idle = ("LayerType: signal", "LayerType: wait")
    return sum(not any(kind in line for kind in idle) for line in layers) or None


def progress_monitor(module: Any, progress: Progress) -> Any:
    """A monitor of the library's kind that tells how far the outermost phase is; an interrupt stops it."""

    class Monitor(module.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            module.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}
            self.interrupted: BaseException | None = None

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                self.steps[phase_name] = num_steps
                self._tell(phase_name, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._tell(phase_name, step + 1)
            return self.interrupted is None

        def phase_finish(self, phase_name: str) -> None:
            self._tell(phase_name, self.steps.get(phase_name, 0))

        def _tell(self, phase: str, done: int) -> None:
            # an exception must not pass through the library's own frames
            try:
                if phase in self.steps:
                    progress(phase, done, self.steps[phase])
            except BaseException as error:
                self.interrupted = error

    return Monitor()


@contextmanager
def stopped_by_interrupt(monitor: Any) -> Iterator[None]:
    """Have Ctrl-C tell the monitor, which stops a build, and raise what it was told at the end: raised in a
    callback of the library, such as its log, it would be lost.

    Raises:
        KeyboardInterrupt: it was pressed.
    """
    before = _take_interrupts(monitor)
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGINT, before)
        if monitor.interrupted is not None:
            raise monitor.interrupted


def _take_interrupts(monitor: Any) -> Any:
    """The handler that was there; None where Ctrl-C does not come here, or another than Python's own takes
    it, which is left alone."""

    def stop(number: int, frame: Any) -> None:
        monitor.interrupted = KeyboardInterrupt()

    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return None
    return signal.signal(signal.SIGINT, stop)
