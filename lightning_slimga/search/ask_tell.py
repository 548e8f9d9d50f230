"""The protocol all searches share: ask for candidates, tell their metric, stop, save and resume.

The next generation is made inside `tell`, as soon as the current one is complete. So the state
between any two calls is complete, `ask` changes nothing, and a search resumed at any evaluation
goes on as if it had never been interrupted.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from operator import attrgetter, is_
from typing import Any

import numpy as np
from deap import tools

from lightning_slimga.search.individual import FITNESS, Individual, decode_mask, encode_mask
from lightning_slimga.search.space import SearchSpace
from lightning_slimga.search.stopping import Limits, no_signal
from lightning_slimga.search.widths import BoolArray

_ATTEMPTS = 20  # batches of variation tried before "nothing new" is believed


class AskTellSearch(ABC):
    """A search over masks by ask and tell.

    Args:
        space: what to search.
        mode: "max" or "min", the direction of the metric.
        population_size: candidates per generation, at least 1.
        limits: when the search ends.
        seed: seed of the search's own generator; no global generator is touched.

    Attributes:
        generation: complete generations.
        noise: how far apart two metrics of one mask may lie, for who knows it.
        statistics: what `history` says of each generation's individuals, as DEAP's `Statistics`;
            plain numbers or lists that are registered here go there, too.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        mode: str = "max",
        population_size: int = 24,
        limits: Limits | None = None,
        seed: int = 0,
    ) -> None:
        if mode not in FITNESS:
            raise ValueError(f"Expected argument `mode` to be 'max' or 'min', but got {mode!r}.")
        if population_size < 1:
            raise ValueError(
                f"Expected argument `population_size` to be at least 1, but got {population_size}."
            )
        self.space = space
        self.mode = mode
        self.population_size = population_size
        self.limits = limits or Limits()
        self.generation = 0
        self.noise = 0.0
        self.statistics = _statistics()
        self._boldness = 1.0  # rises while variation brings too little that is new
        self._rng = np.random.default_rng(seed)
        self._archive: dict[str, Individual] = {}
        self._cohort: list[Individual] = []
        self._history = tools.Logbook()
        self._stop_reason: str | None = None
        self._seconds_before = 0.0
        self._resumed_at = time.monotonic()

    def __repr__(self) -> str:
        best = f", best {self.best[1]:g}" if self._archive else ""
        end = f": {self._stop_reason}" if self.done else ""
        return (
            f"{type(self).__name__}(generation {self.generation} of {self.limits.generations}, "
            f"{self.evaluations} evaluations{best}{end})"
        )

    def _candidate(self, mask: BoolArray) -> Individual:
        """Return an individual without a metric."""
        return Individual(mask, FITNESS[self.mode]())

    @abstractmethod
    def _first(self) -> BoolArray:
        """Return the masks of the first generation, under budget, shape (P, C)."""

    @abstractmethod
    def _variation(self) -> BoolArray:
        """Return candidates for the next generation, under budget; known ones are dropped."""

    def _learn(self, told: Sequence[Individual]) -> None:  # noqa: B027
        """Take in a complete generation, before the next is made."""

    def _memory(self) -> dict[str, Any]:
        """Return what the search adds to the state, as plain data."""
        return {}

    def _remember(self, memory: dict[str, Any]) -> None:  # noqa: B027
        """Take back what `_memory` has returned."""

    def ask(self) -> list[BoolArray]:
        """Return the masks of this generation that still need a metric; empty when done."""
        return [individual.mask.copy() for individual in self._pending()]

    def tell(self, masks: Sequence[BoolArray], fitness: Sequence[float]) -> None:
        """Report metrics, raw as measured. A metric that is not finite counts as worst.

        Args:
            masks: any of the masks that `ask` returned, in any order.
            fitness: one metric for each.

        Raises:
            ValueError: the lengths differ, or a mask is not waiting for a metric.
        """
        if len(masks) != len(fitness):
            raise ValueError(
                "Expected arguments `masks` and `fitness` to have the same length, "
                f"but got {len(masks)} and {len(fitness)}."
            )
        waiting = {individual.key: individual for individual in self._pending()}
        keys = [encode_mask(np.asarray(mask, dtype=np.bool_)) for mask in masks]
        if len(set(keys)) < len(keys) or not waiting.keys() >= set(keys):
            raise ValueError(
                "Expected argument `masks` to hold masks that `ask()` returned and that have no "
                "metric yet, each once, but got another one."
            )
        for key, metric in zip(keys, fitness, strict=True):
            waiting[key].rate(metric)
            self._archive[key] = waiting[key]
        self._proceed()

    @property
    def done(self) -> bool:
        """Whether the search has ended; `stop_reason` says why."""
        return self._stop_reason is not None

    @property
    def stop_reason(self) -> str | None:
        """Why the search has ended, in words; None while it runs."""
        return self._stop_reason

    @property
    def evaluations(self) -> int:
        """Candidates told so far."""
        return len(self._archive)

    @property
    def seconds(self) -> float:
        """Seconds searched, time before an interruption included."""
        return self._seconds_before + time.monotonic() - self._resumed_at

    @property
    def best(self) -> tuple[BoolArray, float]:
        """The best mask so far and its metric.

        Raises:
            RuntimeError: nothing has been told yet.
        """
        if not self._archive:
            raise RuntimeError("Expected a told candidate before `best` is read, but got none yet.")
        return self.elite(1)[0]

    def elite(self, count: int) -> list[tuple[BoolArray, float]]:
        """Return up to `count` best masks so far, all different, with their metrics, best first.

        The metrics are what the search saw. Of many noisy metrics the highest is partly luck, so
        measure the elite again, on all data, before one of them is taken.
        """
        return [(one.mask.copy(), one.value) for one in self._ranked(count)]

    @property
    def hall_of_fame(self) -> tools.HallOfFame:
        """The elite as DEAP keeps it: copies of the best `population_size` individuals so far."""
        hall = tools.HallOfFame(self.population_size, similar=is_)  # all in the archive differ
        hall.update(self._ranked(self.population_size)[::-1])  # it puts the last of equals first
        return hall

    def _ranked(self, count: int) -> list[Individual]:
        return list(tools.selBest(list(self._archive.values()), count))

    @property
    def history(self) -> list[dict[str, Any]]:
        """One plain dictionary per complete generation, oldest first.

        Keys: generation (from 1), evaluations (so far), best (so far), seconds (so far), widths
        (kept channels per layer of the best), and by `statistics`: unique and failed (told in this
        generation, and those without a finite metric), mean and std (of its finite metrics).
        """
        return [dict(entry) for entry in self._history]

    def state_dict(self) -> dict[str, Any]:
        """Return the complete state as dictionaries, lists, numbers and text."""
        return {
            "kind": type(self).__name__,
            "num_channels": self.space.num_channels,
            "generation": self.generation,
            "rng": self._rng.bit_generator.state,
            "archive": [[one.key, one.metric] for one in self._archive.values()],
            "cohort": [one.key for one in self._cohort],
            "history": self.history,
            "stop_reason": self._stop_reason,
            "seconds": self.seconds,
            "memory": self._memory(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken, in a search built with the same arguments.

        Raises:
            ValueError: the state belongs to another kind of search or another network.
        """
        expected = (type(self).__name__, self.space.num_channels)
        got = (state["kind"], state["num_channels"])
        if expected != got:
            raise ValueError(
                f"Expected argument `state` to be of a {expected[0]} over {expected[1]} channels, "
                f"but got one of a {got[0]} over {got[1]} channels."
            )
        self.generation = state["generation"]
        self._rng.bit_generator.state = state["rng"]
        self._archive = {key: self._revive(key) for key, _ in state["archive"]}
        for key, metric in state["archive"]:
            self._archive[key].rate(metric)
        self._cohort = [self._archive.get(key) or self._revive(key) for key in state["cohort"]]
        self._history = tools.Logbook()
        for entry in state["history"]:
            self._history.record(**entry)
        self._stop_reason = state["stop_reason"]
        self._seconds_before = state["seconds"]
        self._resumed_at = time.monotonic()
        self._remember(state["memory"])

    def _begin(self) -> None:
        """Make the first generation; the last line of every constructor."""
        self._propose(self._first)

    def _revive(self, key: str) -> Individual:
        return self._candidate(decode_mask(key, self.space.num_channels))

    def _pending(self) -> list[Individual]:
        return [individual for individual in self._cohort if individual.metric is None]

    def _proceed(self) -> None:
        """Go on to the next generation if this one is complete, or stop."""
        late = self.limits.out_of_time(self.seconds) if self._archive else None
        if self.done or (self._pending() and late is None):
            return
        self._complete()
        reason = no_signal([one.value for one in self._archive.values()], self.noise)
        bests = self._history.select("best")
        self._stop_reason = reason or self.limits.spent(self.evaluations, bests) or late
        self._cohort = []
        if not self.done:
            self._propose(self._variation)

    def _propose(self, source: Callable[[], BoolArray]) -> None:
        """Collect different masks that nobody has told, as many as a generation may hold."""
        room = self.population_size
        if self.limits.max_evaluations is not None:
            room = min(room, self.limits.max_evaluations - self.evaluations)
        found: dict[str, Individual] = {}
        for attempt in range(_ATTEMPTS):
            self._boldness = 1.0 + attempt
            for mask in source():
                individual = self._candidate(mask)
                if individual.key not in self._archive:
                    found.setdefault(individual.key, individual)
            if len(found) >= room:
                break
        self._cohort = list(found.values())[:room]
        if not found:
            self._stop_reason = "variation finds no mask that is new"

    def _complete(self) -> None:
        """Close a generation: learn from it and write it down."""
        told = [one for one in self._cohort if one.metric is not None]
        for one in told:  # in the order of asking, so that the order of telling makes no difference
            self._archive[one.key] = self._archive.pop(one.key)
        self._learn(told)
        self.generation += 1
        mask, best = self.best
        self._history.record(
            generation=self.generation,
            evaluations=self.evaluations,
            best=best,
            seconds=self.seconds,
            widths=self.space.counts(mask[None])[0].tolist(),
            **self.statistics.compile(told),
        )


def _statistics() -> tools.Statistics:
    """What is said of a generation, from the metrics told in it."""
    statistics = tools.Statistics(key=attrgetter("value"))
    statistics.register("unique", len)
    statistics.register("failed", lambda values: len(values) - len(_finite(values)))
    statistics.register("mean", lambda values: _of_finite(np.mean, values))
    statistics.register("std", lambda values: _of_finite(np.std, values))
    return statistics


def _finite(values: Sequence[float]) -> list[float]:
    return [value for value in values if math.isfinite(value)]


def _of_finite(function: Callable[[list[float]], Any], values: Sequence[float]) -> float:
    finite = _finite(values)
    return float(function(finite)) if finite else math.nan
