"""Racing: a candidate that is clearly behind does not run to the end of the validation data.

A race (Maron & Moore, "Hoeffding races", NIPS 1994) compares candidates on the data seen so far.
All candidates see the same batches in the same order, so differences are paired, batch by batch,
as in F-races (Birattari et al., "A racing algorithm for configuring metaheuristics", GECCO 2002,
with Student's t for two). The rule is ours:

- The incumbent is the k-th best candidate that has run to the end, k being the number of parents
  of a generation: who would not even become a parent need not be finished.
- With d_1..d_n the differences to the incumbent on the first n of N batches, better being positive,
  and d_0 = 0 counted in (so that a few equal differences of a coarse metric prove nothing), the
  candidate stops if

      mean(d_0..d_n) + t(n, 1 - a) * std(d_0..d_n) * sqrt((1 - n / N) / (n + 1)) < 0

  where t(n, p) is the quantile of Student's distribution with n degrees of freedom, and 1 - n / N
  the correction for a finite population (Cochran, "Sampling techniques", 1977, eq. 2.20): what is
  predicted is the difference on these N batches. Provided that these come in a random order, each
  look stops a candidate that would have become a parent with a probability of at most a = 0.02. As
  in F-races there is no correction for repeated looks: of candidates that equal the incumbent to
  the last digit 9 to 14 % are stopped by any of them. They are told as almost that.
- It is told as the incumbent's metric plus the mean difference, which is worse than the
  incumbent's. So parents and winners have always run to the end.

Where the metric is a mean over batches of equal size, d_n follows exactly from the running metric;
otherwise to first order, while sum(d_1..d_n) / n is the difference of the running metrics always.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from lightning_slimga.search.individual import SIGN
from lightning_slimga.search.widths import FloatArray

MIN_BATCHES = 4
"""With fewer batches nothing could be saved."""

_MIN_DIFFERENCES = 3
_MOST_BLOCKS = 32
_RISK = 0.02  # of stopping, at one look, a candidate that would have become a parent


@dataclass(frozen=True)
class _Finished:
    """A candidate that has run to the end: its metric, and the running metric at each look."""

    metric: float
    running: tuple[float, ...]


class Race:
    """What a search knows of complete candidates, and the rule that stops others early.

    Args:
        mode: "max" or "min", the direction of the metric.
        parents: rank of the incumbent among the complete candidates, at least 1.
        num_batches: batches of a complete evaluation; with fewer than `MIN_BATCHES`, or infinitely
            many, nobody is stopped.

    Attributes:
        off: why nobody is stopped, in words, or None.
        shares: part of the batches that each candidate has needed, in the order of evaluation.
    """

    def __init__(self, mode: str, parents: int, num_batches: float) -> None:
        self.num_batches = num_batches
        self.off: str | None = None
        self.shares: list[float] = []
        self._sign = SIGN[mode]
        self._parents = parents
        self._best: list[_Finished] = []
        self.block = 1
        if MIN_BATCHES <= num_batches < math.inf:
            self.block = math.ceil(num_batches / _MOST_BLOCKS)
        else:
            self.off = f"there are {num_batches} batches, too few or too many to tell"

    def enter(self) -> Runner:
        """Return what follows one candidate through its evaluation."""
        return Runner(self)

    @property
    def saved(self) -> float:
        """Part of the forward work on validation batches that was saved so far, in [0, 1)."""
        return 1 - sum(self.shares) / len(self.shares) if self.shares else 0.0

    def is_behind(self, running: list[float]) -> bool:
        """Whether a candidate with these running metrics, one per look, has lost."""
        incumbent = self._incumbent
        if incumbent is None or not math.isfinite(running[-1]):
            return False
        ours, theirs = np.array(running), np.array(incumbent.running[: len(running)])
        known = np.isfinite(ours) & np.isfinite(theirs)
        differences = self._sign * _contributions((ours - theirs)[known])
        blocks = math.ceil(self.num_batches / self.block)
        unknown = len(known) - len(differences)  # before the loader that logs the metric begins
        return _is_negative(differences, blocks - unknown)

    def estimate(self, running: list[float]) -> float:
        """Return what to tell of a candidate that was stopped; worse than the incumbent."""
        incumbent = self._incumbent
        assert incumbent is not None
        difference = running[-1] - incumbent.running[len(running) - 1]
        worst = math.nextafter(incumbent.metric, -self._sign * math.inf)
        told = (incumbent.metric + difference, worst)
        return min(told) if self._sign > 0 else max(told)

    def take(self, metric: float, running: list[float]) -> None:
        """Remember a candidate that has run to the end."""
        if not math.isfinite(metric):
            return
        if not any(math.isfinite(value) for value in running):
            self.off = "the metric is known only at the end of a validation"
        self._best.append(_Finished(metric, tuple(running)))
        self._best.sort(key=lambda one: -self._sign * one.metric)  # stable: of equals the first
        del self._best[self._parents :]

    @property
    def _incumbent(self) -> _Finished | None:
        return self._best[-1] if len(self._best) == self._parents else None

    def with_work(self, history: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return a search's history, with the part of the batches that each generation needed."""
        result, before = [], 0
        for entry in history:
            shares = self.shares[before : entry["evaluations"]]
            work = sum(shares) / len(shares) if shares else math.nan
            result.append({**entry, "work": work})
            before = entry["evaluations"]
        return result

    def state_dict(self) -> dict[str, Any]:
        """Return everything that later decisions depend on, as plain data."""
        return {
            "off": self.off,
            "shares": list(self.shares),
            "best": [[one.metric, list(one.running)] for one in self._best],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken, in a race built with the same arguments."""
        self.off, self.shares = state["off"], list(state["shares"])
        self._best = [_Finished(metric, tuple(running)) for metric, running in state["best"]]


class Runner:
    """One candidate on its way; the race learns of it when it has finished.

    Args:
        race: the race.
    """

    def __init__(self, race: Race) -> None:
        self._race = race
        self._running: list[float] = []
        self._stopped_at: int | None = None

    def stops(self, done: int, running: Callable[[], float]) -> bool:
        """Whether the evaluation may end here; to be asked after each batch but the last.

        Args:
            done: batches done.
            running: computes the metric on them; NaN where that is not known yet.
        """
        race = self._race
        if race.off is not None or done % race.block:
            return False
        self._running.append(running())
        if race.is_behind(self._running):
            self._stopped_at = done
            return True
        return False

    def finish(self, metric: float) -> float:
        """Close the evaluation.

        Args:
            metric: the metric of all batches done.

        Returns:
            What to tell the search.
        """
        race = self._race
        if self._stopped_at is not None:
            race.shares.append(self._stopped_at / race.num_batches)
            return race.estimate(self._running)
        race.shares.append(1.0)
        if race.off is None:
            race.take(metric, self._running)
        return metric


def _contributions(running: FloatArray) -> FloatArray:
    """Return the terms whose running means are given."""
    sums = running * np.arange(1, len(running) + 1)
    return np.diff(sums, prepend=0.0)


def _is_negative(differences: FloatArray, population: int) -> bool:
    """Whether the mean of a population is negative, from its first members (see the module)."""
    count = len(differences)
    if count < _MIN_DIFFERENCES:
        return False
    mean = differences.sum() / (count + 1)
    variance = ((differences**2).sum() - (count + 1) * mean**2) / count
    error = math.sqrt(max(0.0, variance) * (1 - count / population) / (count + 1))
    return bool(mean + t_quantile(1 - _RISK, count) * error < 0)


@lru_cache
def t_quantile(probability: float, freedom: int) -> float:
    """Return the quantile of Student's t distribution.

    Args:
        probability: in [0.5, 1).
        freedom: degrees of freedom, a whole number of at least 1.
    """
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        angle = (low + high) / 2
        low, high = (angle, high) if _within(angle, freedom) < 2 * probability - 1 else (low, angle)
    return math.sqrt(freedom) * math.tan(low)


def _within(angle: float, freedom: int) -> float:
    """Return P(abs(T) < sqrt(freedom) * tan(angle)), by Abramowitz & Stegun 26.7.3 and 26.7.4."""
    odd = freedom % 2
    term, total = 1.0, 0.0
    for k in range(odd, freedom - 1, 2):  # powers of the cosine
        if k > odd:
            term *= (k - 1) / k
        total += term * math.cos(angle) ** k
    if odd:
        return 2 / math.pi * (angle + math.sin(angle) * total)
    return math.sin(angle) * total
