from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from lightning_slimga.running.garbage import rare_collection


@pytest.fixture(autouse=True)
def thresholds() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)


def test_thresholds_come_back_after_an_exception() -> None:
    seen = []

    @rare_collection()
    def fails() -> None:
        seen.append(gc.get_threshold()[0])
        raise ValueError("stop")

    gc.set_threshold(123, 4, 5)
    with pytest.raises(ValueError, match="stop"):
        fails()
    assert seen[0] > 10_000
    assert gc.get_threshold()[:2] == (123, 4)


def test_a_rarer_threshold_of_the_user_holds() -> None:
    gc.set_threshold(10_000_000)
    with rare_collection():
        assert gc.get_threshold()[0] == 10_000_000


def test_what_the_user_has_switched_off_stays_off() -> None:
    gc.set_threshold(0)
    with rare_collection():
        assert gc.get_threshold()[0] == 0
