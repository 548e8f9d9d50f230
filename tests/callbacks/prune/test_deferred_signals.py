from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from lightning_slimga.callbacks.prune.deferred_signals import DeferredSignals


@pytest.fixture(autouse=True)
def heard() -> Iterator[list[int]]:
    """The signals whose own handler has run."""
    seen: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: seen.append(number))
    yield seen
    signal.signal(signal.SIGUSR1, before)


def test_a_signal_waits_for_delivery(heard: list[int]) -> None:
    with DeferredSignals() as signals:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert heard == []
        signals.deliver()
        assert heard == [signal.SIGUSR1]
        signals.deliver()
        assert heard == [signal.SIGUSR1]  # once


def test_a_signal_waits_for_the_end_of_the_block(heard: list[int]) -> None:
    with DeferredSignals():
        os.kill(os.getpid(), signal.SIGUSR1)
        assert heard == []
    assert heard == [signal.SIGUSR1]
    os.kill(os.getpid(), signal.SIGUSR1)
    assert len(heard) == 2  # its own handler is back


def test_a_second_ctrl_c_does_not_wait() -> None:
    reached = []

    def insisting() -> None:
        with DeferredSignals():
            os.kill(os.getpid(), signal.SIGINT)
            reached.append("the first")
            os.kill(os.getpid(), signal.SIGINT)
            reached.append("the second")

    with pytest.raises(KeyboardInterrupt):
        insisting()
    assert reached == ["the first"]


def test_other_signals_wait_once(heard: list[int]) -> None:
    with DeferredSignals():
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert heard == []
    assert len(heard) == 1


def test_signals_of_other_processes_are_adopted(heard: list[int]) -> None:
    with DeferredSignals() as signals:
        os.kill(os.getpid(), signal.SIGUSR1)
        signals.adopt([signal.SIGUSR1, signal.SIGKILL])  # there is no handler for the latter
        assert signals.waiting == [signal.SIGUSR1]
        signals.deliver()
    assert len(heard) == 1


def test_what_ends_the_block_does_not_end_it_twice(heard: list[int]) -> None:
    def ended() -> None:
        with DeferredSignals() as signals:
            os.kill(os.getpid(), signal.SIGUSR1)
            signals.deliver()
            os.kill(os.getpid(), signal.SIGUSR1)
            raise SystemExit

    with pytest.raises(SystemExit):
        ended()
    assert len(heard) == 1


def test_ctrl_c_is_raised_where_it_is_delivered() -> None:
    reached = []

    def interrupted() -> None:
        with DeferredSignals() as signals:
            os.kill(os.getpid(), signal.SIGINT)
            reached.append("after the signal")
            signals.deliver()
            reached.append("after delivery")

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert reached == ["after the signal"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_is_not_lost_when_the_block_fails() -> None:
    def failing() -> None:
        with DeferredSignals():
            os.kill(os.getpid(), signal.SIGINT)
            raise ValueError

    with pytest.raises(KeyboardInterrupt):
        failing()


def test_a_handler_that_is_set_meanwhile_stays() -> None:
    def own(number: int, frame: Any) -> None:
        """A user's."""

    with DeferredSignals():
        signal.signal(signal.SIGUSR1, own)
    assert signal.getsignal(signal.SIGUSR1) is own


def test_ignored_signals_stay_ignored() -> None:
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    with DeferredSignals():
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN


def test_other_threads_defer_nothing() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    found: list[Any] = []

    def run() -> None:
        with DeferredSignals() as signals:
            found.append(signal.getsignal(signal.SIGUSR1))
            signals.deliver()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [before]
