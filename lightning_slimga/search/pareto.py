"""The whole front from one search: NSGA-II over the metric and a cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from deap import tools

from lightning_slimga.search.ask_tell import AskTellSearch
from lightning_slimga.search.factor import EvaluationFactor
from lightning_slimga.search.front import FrontPoint, knee, undominated
from lightning_slimga.search.individual import FITNESS_AT_COST, Individual, stack
from lightning_slimga.search.operators import (
    draw_layers,
    inherit_layers,
    shift_widths,
    swap_borderline,
)
from lightning_slimga.search.rates import Rates
from lightning_slimga.search.seeds import random_masks, rankings
from lightning_slimga.search.space import SearchSpace
from lightning_slimga.search.widths import BoolArray, FloatArray, IntArray

_NEAR = 4  # neighbours on the front that a child inherits from
_STEP = 0.1  # standard deviation of the log of the cost share between child and parent


class ParetoSearch(AskTellSearch):
    """Search for the best metric at every cost up to the budget (NSGA-II, Deb et al. 2002).

    The cost is that of the space's first budget. Each candidate is brought exactly under a share of
    the limits: first shares spread over the whole range, then shares around those of the parents,
    which NSGA-II selects from all told candidates.

    Args:
        space: what to search; its first budget is the second objective and its limit the upper end.
        mode: "max" or "min", the direction of the metric.
        smallest: lower end of the range of costs, as a share of the limit, in (0, 1).
        population_size: candidates per generation, at least 2.
        generations: generations to run, at least 1.
        max_evaluations: stop after this many told candidates.
        max_time: stop after this many seconds, time before an interruption included.
        seed: seed of the search's own generator; no global generator is touched.
        evaluation_factor: let the factor learn; otherwise it stays the normalised score.
        rates: constants of the variation.

    Raises:
        ValueError: an argument is out of its range, or the space has no budget.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        mode: str = "max",
        smallest: float = 0.2,
        population_size: int = 24,
        generations: int = 20,
        max_evaluations: int | None = None,
        max_time: float | None = None,
        seed: int = 0,
        evaluation_factor: bool = True,
        rates: Rates | None = None,
    ) -> None:
        if not space.budgets:
            raise ValueError(
                "Expected argument `space` to have a budget, whose cost is the second objective, "
                "but got none."
            )
        if not 0 < smallest < 1:
            raise ValueError(
                f"Expected argument `smallest` to lie between 0 and 1, but got {smallest}."
            )
        if population_size < 2:
            raise ValueError(
                f"Expected argument `population_size` to be at least 2, but got {population_size}."
            )
        super().__init__(
            space,
            mode=mode,
            population_size=population_size,
            generations=generations,
            max_evaluations=max_evaluations,
            max_time=max_time,
            seed=seed,
        )
        self.smallest = smallest
        self.rates = rates or Rates()
        learning = self.rates.learning if evaluation_factor else 0.0
        self._factor = EvaluationFactor(space, rate=learning)
        self._begin()

    @property
    def front(self) -> list[FrontPoint]:
        """Points that no told candidate beats in both metric and cost, cheapest first."""
        points = [FrontPoint(one.mask.copy(), one.value, one.costs[0]) for one in self._finite()]
        return undominated(points, self.mode)

    def pick(
        self, how: str = "knee", *, budget: float | None = None, index: int | None = None
    ) -> FrontPoint:
        """Choose one point of the front.

        Args:
            how: "knee": the point farthest above the line between both ends of the front, both
                axes scaled to 0..1. Used where neither of the others is given.
            budget: take the best metric with at most this cost.
            index: take this point of `front`, cheapest first.

        Raises:
            ValueError: the front is empty, `how` is unknown, or no point is within the budget.
            IndexError: there is no such index.
        """
        front = self.front
        if not front:
            raise ValueError("Expected a told candidate before `pick`, but the front is empty.")
        if index is not None:
            return front[index]
        if budget is not None:
            within = [point for point in front if point.cost <= budget]
            if not within:
                raise ValueError(
                    f"Expected argument `budget` to be at least {front[0].cost:g}, the smallest "
                    f"cost on the front, but got {budget:g}."
                )
            return within[-1]
        if how != "knee":
            raise ValueError(f"Expected argument `how` to be 'knee', but got {how!r}.")
        return front[knee(front, self.mode)]

    def _candidate(self, mask: BoolArray) -> Individual:
        cost = float(next(iter(self.space.costs(mask[None]).values()))[0])
        return Individual(mask, FITNESS_AT_COST[self.mode](), costs=(cost,))

    def _finite(self) -> list[Individual]:
        told = self._archive.values()
        return [one for one in told if math.isfinite(one.fitness.wvalues[0])]

    def _first(self, boldness: float) -> BoolArray:
        share = np.geomspace(self.smallest, 1.0, self.population_size)
        factor = self._factor.values
        drawn = random_masks(self.space, factor, self._rng, len(share), share)
        seeds = np.stack(list(rankings(self.space).values()))
        ends = np.ones((2, self.space.num_channels), dtype=np.bool_)
        uniform = self.space.repair(ends, factor, share=share[[0, len(share) // 2]])
        return np.concatenate([uniform, seeds, drawn[self._rng.permutation(len(drawn))]])

    def _variation(self, boldness: float) -> BoolArray:
        finite = self._finite()
        if not finite:
            return self._first(boldness)
        parents = tools.selNSGA2(finite, min(len(finite), self.population_size))
        # Parents in the order of their cost: neighbours on the front are neighbours in the list.
        parents = sorted(parents, key=lambda one: one.costs[0])
        masks = stack(parents, self.space.num_channels)
        costs = np.array([one.costs[0] for one in parents])
        anchors = self._rng.integers(len(parents), size=self.population_size)
        step = np.exp(_STEP * self._rng.standard_normal(len(anchors)))
        share = np.clip(costs[anchors] / self.space.budgets[0].limit * step, self.smallest, 1.0)
        return self._bred(masks, anchors, share, self.rates.bolder(boldness))

    def _bred(
        self, parents: BoolArray, anchors: IntArray, share: FloatArray, rates: Rates
    ) -> BoolArray:
        shape = (len(anchors), self.space.num_layers)
        near = draw_layers(min(_NEAR, len(parents)), shape, self._rng)
        side = self._rng.choice((-1, 1), shape)
        origin = np.clip(anchors[:, None] + near * side, 0, len(parents) - 1)
        children = inherit_layers(self.space, parents, origin)
        factor = self._factor.values
        widths = self.space.counts(children).astype(np.float64)
        widths = shift_widths(widths, self._rng, layers=rates.layers, sigma=rates.sigma)
        children = swap_borderline(
            self.space, children, factor, self._rng, rate=rates.swap, noise=rates.noise
        )
        return self.space.repair(children, factor, widths=widths, share=share)

    def _learn(self, cohort: Sequence[Individual]) -> None:
        finite = self._finite()
        if finite:
            everyone = tools.selNSGA2(finite, min(len(finite), 2 * self.population_size))
            elite = everyone[: max(2, self.population_size // 3)]
            num_channels = self.space.num_channels
            self._factor.follow(stack(elite, num_channels), stack(everyone, num_channels))

    def _memory(self) -> dict[str, Any]:
        return {"factor": self._factor.values.tolist()}

    def _remember(self, memory: dict[str, Any]) -> None:
        self._factor.values = np.array(memory["factor"], dtype=np.float64)
