"""Signals that wait until the network is whole."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")


class DeferredSignals:
    """Inside the block signals wait for the next :meth:`deliver`, or for the end of the block.

    What Python does about a signal may raise (Ctrl-C) or save a checkpoint (SLURM's requeueing),
    at whatever line the program happens to be. In the middle of a cut that is the wrong moment.
    A second signal of the same kind does not wait: who insists may have to end a data loader that
    hangs. Outside of the main thread, where no handler can be set, nothing is deferred.
    """

    def __init__(self) -> None:
        self._handlers: dict[int, Callable[[int, FrameType | None], Any]] = {}
        self._waiting: list[int] = []

    def __enter__(self) -> DeferredSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (getattr(signal, name) for name in _NAMES if hasattr(signal, name)):
                handler = signal.getsignal(number)
                if callable(handler):
                    self._handlers[number] = handler
                    signal.signal(number, self._wait)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._handlers.items():
            if signal.getsignal(number) == self._wait:  # user code may have set its own
                signal.signal(number, handler)
        self.deliver()

    def deliver(self) -> None:
        """Let the handlers of the signals that have arrived run now; they may raise."""
        while self._waiting:
            number = self._waiting.pop(0)
            self._handlers[number](number, None)

    def _wait(self, number: int, frame: FrameType | None) -> None:
        if number in self._waiting:
            self._handlers[number](number, frame)
        else:
            self._waiting.append(number)
