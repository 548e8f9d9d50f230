"""When a search ends, and how it says so."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

NO_SIGNAL = "no signal"
_ENOUGH = 8  # equal metrics from so many different masks are no coincidence


@dataclass(frozen=True)
class Limits:
    """How far a search goes at most; the first limit that is reached ends it.

    Attributes:
        generations: generations to run, at least 1; the first holds the seeds.
        max_evaluations: told candidates, at least 1; None is no limit.
        max_time: seconds, positive, time before an interruption included; None is no limit.
        patience: generations without a better best metric, at least 1; None is no limit.

    Raises:
        ValueError: a limit is out of its range.

    >>> Limits(max_evaluations=216).spent(216, bests=[0.7, 0.8])
    'reached max_evaluations=216'
    """

    generations: int = 9
    max_evaluations: int | None = None
    max_time: float | None = None
    patience: int | None = None

    def __post_init__(self) -> None:
        for name in ("generations", "max_evaluations", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"Expected argument `{name}` to be at least 1, but got {value}.")
        if self.max_time is not None and not self.max_time > 0:
            raise ValueError(
                f"Expected argument `max_time` to be positive seconds, but got {self.max_time}."
            )

    def out_of_time(self, seconds: float) -> str | None:
        """Return the reason if `seconds` are too many."""
        if self.max_time is not None and seconds >= self.max_time:
            return f"reached max_time={self.max_time:g} seconds"
        return None

    def spent(self, evaluations: int, bests: Sequence[float]) -> str | None:
        """Return the reason if a complete generation was the last.

        Args:
            evaluations: told candidates.
            bests: the best metric so far after each complete generation.
        """
        generation = len(bests)
        waited = len(list(takewhile(lambda earlier: earlier == bests[-1], bests[-2::-1])))
        if self.max_evaluations is not None and evaluations >= self.max_evaluations:
            return f"reached max_evaluations={self.max_evaluations}"
        if generation >= self.generations:
            return f"finished {generation} generations"
        if self.patience is not None and waited >= self.patience:
            return f"no better candidate for {waited} generations (patience={self.patience})"
        return None


def no_signal(metrics: Sequence[float], noise: float = 0.0) -> str | None:
    """Return the reason if the metrics of different masks say nothing about them.

    Args:
        metrics: one for each mask, all different.
        noise: how far apart two metrics of one mask lie.
    """
    if len(metrics) < _ENOUGH:
        return None
    finite = [metric for metric in metrics if math.isfinite(metric)]
    if not finite:
        return (
            f"{NO_SIGNAL}: none of {len(metrics)} candidates has a finite metric; has training "
            "diverged, or is the metric not defined on these data?"
        )
    if len(finite) < len(metrics):
        return None
    spread = max(finite) - min(finite)
    if noise and spread <= noise:
        return (
            f"{NO_SIGNAL}: the metrics of {len(metrics)} candidates lie within {spread:g}, two "
            f"metrics of one network {noise:g} apart; is something random in the validation?"
        )
    if not spread:
        return (
            f"{NO_SIGNAL}: all {len(metrics)} candidates have the same metric {finite[0]:g}; "
            "is the budget too small, or the metric independent of the network?"
        )
    return None
