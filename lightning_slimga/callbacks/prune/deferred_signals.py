"""Signals that wait until the network is whole."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable
from types import FrameType, TracebackType
from typing import Any

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")


class DeferredSignals:
    """Inside the block signals wait for the next :meth:`deliver`, or for the end of the block.

    What Python does about a signal may raise (Ctrl-C), save a checkpoint (SLURM's requeueing) or
    talk to other processes (Lightning), at whatever line the program happens to be. In the middle
    of a cut that is the wrong moment. A second Ctrl-C does not wait: who insists may have to end a
    data loader that hangs. Outside of the main thread, where no handler can be set, nothing is
    deferred.

    Attributes:
        waiting: numbers of the signals that have arrived.
    """

    def __init__(self) -> None:
        self.waiting: list[int] = []
        self._handlers: dict[int, Callable[[int, FrameType | None], Any]] = {}
        self._delivered: set[int] = set()

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
        if error is not None:  # what ends the block need not end it twice
            self.waiting = [number for number in self.waiting if number not in self._delivered]
        self.deliver()

    def adopt(self, numbers: Iterable[int]) -> None:
        """Let signals wait that other processes have received."""
        self.waiting += [n for n in numbers if n in self._handlers and n not in self.waiting]

    def deliver(self) -> None:
        """Let the handlers of the signals that wait run now; they may raise."""
        while self.waiting:
            number = self.waiting.pop(0)
            self._delivered.add(number)
            self._handlers[number](number, None)

    def _wait(self, number: int, frame: FrameType | None) -> None:
        if number not in self.waiting:
            self.waiting.append(number)
        elif number == signal.SIGINT:
            self._handlers[number](number, frame)
