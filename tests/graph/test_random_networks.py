"""The idea, not a list: what must hold, tried on random networks."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.networks.random_networks import Sample, build, check
from tests.networks.steps import SeededChoices


class DrawnChoices:
    """Decisions that hypothesis makes, so that it can shrink a counter-example."""

    def __init__(self, draw: Any) -> None:
        self._draw = draw

    def integer(self, low: int, high: int) -> int:
        return int(self._draw(st.integers(low, high)))


@st.composite
def networks(draw: Any) -> Sample:
    """Random networks with an input for each."""
    return build(DrawnChoices(draw))


@settings(
    max_examples=150,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(networks())
def test_the_engine_is_exact_on_random_networks(sample: Sample) -> None:
    check(sample)


def test_and_does_not_freeze_everything() -> None:
    reports = [check(build(SeededChoices(seed)), seed) for seed in range(60)]
    shares = [report.removable for report in reports if report is not None]
    assert len(shares) > 50
    assert sum(shares) / len(shares) > 0.3
    assert sum(share > 0 for share in shares) > 0.7 * len(shares)
