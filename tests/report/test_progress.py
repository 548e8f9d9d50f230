from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest

from lightning_slimga.report import SearchProgress


def clock(*seconds: float) -> Callable[[], float]:
    times: Iterator[float] = iter(seconds)
    return lambda: next(times)


def test_line_of_a_running_search() -> None:
    # 96 evaluations in 33.6 s are 0.35 s each; 120 are left.
    progress = SearchProgress(9, 216, clock=clock(100.0, 133.6))
    assert progress.line(3, 96, best=0.814, mean=0.7712) == (
        "search: generation 3/9 · 96/216 evaluations · best 0.8140 · mean 0.7712 · 0:42 left"
    )


def test_line_before_anything_is_known() -> None:
    progress = SearchProgress(9, clock=clock(0.0, 5.0))
    assert progress.line(1, 0, best=math.nan, mean=-math.inf) == (
        "search: generation 1/9 · 0 evaluations · best – · mean –"
    )


@pytest.mark.parametrize(
    ("evaluations", "max_time", "expected"),
    [
        (10, None, 900.0),  # 10 s for each of 90
        (10, 600.0, 500.0),  # the time limit comes first
        (0, 600.0, 500.0),  # nothing done yet, but the limit is known
        (0, 50.0, 0.0),  # over time
        (100, None, 0.0),
        (110, None, 0.0),
    ],
)
def test_seconds_left(evaluations: int, max_time: float | None, expected: float) -> None:
    progress = SearchProgress(5, 100, max_time=max_time, clock=clock(0.0, 100.0))
    assert progress.seconds_left(evaluations) == pytest.approx(expected)


def test_resumed_search_does_not_count_what_was_done_before() -> None:
    progress = SearchProgress(5, 100, evaluations=50, clock=clock(0.0, 20.0, 20.0))
    assert progress.seconds_left(50) is None
    assert progress.seconds_left(60) == pytest.approx(80.0)


def test_hours() -> None:
    progress = SearchProgress(2, 2, clock=clock(0.0, 3725.0))
    assert progress.line(1, 1, best=1.0, mean=1.0).endswith("1:02:05 left")
