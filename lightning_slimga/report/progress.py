"""The live line of a running search."""

from __future__ import annotations

import math
import time
from collections.abc import Callable


class SearchProgress:
    """Puts the state of a search into one line, with an estimate of the time left.

    The estimate takes every evaluation that is left to be as long as the average so far. It is
    an upper bound in practice: a search that stops early, or meets masks it knows, is faster.

    >>> seconds = iter([100.0, 133.6])
    >>> progress = SearchProgress(9, 216, clock=lambda: next(seconds))
    >>> progress.line(3, 96, best=0.814, mean=0.7712)
    'search: generation 3/9 · 96/216 evaluations · best 0.8140 · mean 0.7712 · 0:42 left'

    Args:
        generations: Number of generations planned, at least 1.
        max_evaluations: Evaluations planned in all; None where no number is known.
        max_time: Limit of the search in seconds, or None.
        evaluations: Evaluations that were done before this object was made (a resumed search).
        clock: Returns seconds; differences are used.
    """

    def __init__(
        self,
        generations: int,
        max_evaluations: int | None = None,
        *,
        max_time: float | None = None,
        evaluations: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.generations = generations
        self.max_evaluations = max_evaluations
        self.max_time = max_time
        self._done_before = evaluations
        self._clock = clock
        self._started = clock()

    def line(self, generation: int, evaluations: int, best: float, mean: float) -> str:
        """Return the line to show now.

        Args:
            generation: Generation being evaluated, counted from 1.
            evaluations: Evaluations done so far, resumed ones included.
            best: Best fitness so far; NaN while there is none.
            mean: Mean fitness of the generation; NaN while there is none.
        """
        planned = "" if self.max_evaluations is None else f"/{self.max_evaluations}"
        parts = [
            f"search: generation {generation}/{self.generations}",
            f"{evaluations}{planned} evaluations",
            f"best {_fitness(best)}",
            f"mean {_fitness(mean)}",
        ]
        left = self.seconds_left(evaluations)
        if left is not None:
            parts.append(f"{_clock_face(left)} left")
        return " · ".join(parts)

    def seconds_left(self, evaluations: int) -> float | None:
        """Return the seconds that the search will still take, or None while nobody can know."""
        elapsed = self._clock() - self._started
        bounds = []
        if self.max_time is not None:
            bounds.append(max(0.0, self.max_time - elapsed))
        done_here = evaluations - self._done_before
        if self.max_evaluations is not None and done_here > 0:
            bounds.append(elapsed / done_here * max(0, self.max_evaluations - evaluations))
        return min(bounds, default=None)


def _fitness(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else "–"


def _clock_face(seconds: float) -> str:
    """Return seconds as m:ss, or h:mm:ss from one hour on."""
    minutes, secs = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{secs:02d}" if hours else f"{minutes}:{secs:02d}"
