"""The whole front from one search: NSGA-II over the metric and a cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from deap import tools

from lightning_slimga.search.breeding import BreedingSearch
from lightning_slimga.search.front import FrontPoint, undominated
from lightning_slimga.search.individual import FITNESS_AT_COST, Individual
from lightning_slimga.search.operators import inherit_nearby
from lightning_slimga.search.rates import Rates
from lightning_slimga.search.seeds import random_masks, rankings
from lightning_slimga.search.space import SearchSpace
from lightning_slimga.search.stopping import Limits
from lightning_slimga.search.widths import BoolArray, FloatArray

_STEP = 0.1  # standard deviation of the log of the cost share between child and parents


class ParetoSearch(BreedingSearch):
    """Search for the best metric at every cost up to the budget (NSGA-II, Deb et al. 2002).

    The cost is that of the space's first budget. Each candidate is brought exactly under a share of
    the limits: first shares spread over the whole range, then shares around those of the parents,
    which NSGA-II selects from all told candidates.

    Args:
        space: what to search; its first budget is the second objective and its limit the upper end.
        smallest: lower end of the range of costs, as a share of the limit, in (0, 1).
        options: those of `GeneticSearch`; by default there are 20 generations, and no screening,
            which knows nothing of cost.

    Raises:
        ValueError: an argument is out of its range, or the space has no budget.

    >>> import numpy as np
    >>> from lightning_slimga.search import Budget, Limits, ParetoSearch, SearchSpace
    >>> whole = Budget("channels", 8, lambda counts: counts.sum(axis=1))
    >>> space = SearchSpace([("a", slice(0, 4)), ("b", slice(4, 8))], np.ones(8), [whole])
    >>> search = ParetoSearch(space, population_size=8, limits=Limits(generations=6))
    >>> while not search.done:
    ...     masks = search.ask()
    ...     search.tell(masks, [float(mask[:4].sum()) for mask in masks])
    >>> [(point.cost, point.metric) for point in search.front]
    [(2.0, 1.0), (3.0, 2.0), (4.0, 3.0), (5.0, 4.0)]
    """

    def __init__(self, space: SearchSpace, *, smallest: float = 0.2, **options: Any) -> None:
        if not space.budgets:
            raise ValueError(
                "Expected argument `space` to have a budget, whose cost is the second objective, "
                "but got none."
            )
        if not 0 < smallest < 1:
            raise ValueError(
                f"Expected argument `smallest` to lie between 0 and 1, but got {smallest}."
            )
        self.smallest = smallest
        defaults = {"limits": Limits(generations=20), "rates": Rates(siblings=1)}
        super().__init__(space, **{**defaults, **options})

    @property
    def front(self) -> list[FrontPoint]:
        """Points that no told candidate beats in both metric and cost, cheapest first."""
        points = [FrontPoint(one.mask.copy(), one.value, one.costs[0]) for one in self._finite()]
        return undominated(points, self.mode)

    def _register(self) -> None:
        super()._register()
        self.toolbox.register("select", tools.selNSGA2)
        self.toolbox.register("mate", inherit_nearby)

    def _candidate(self, mask: BoolArray) -> Individual:
        cost = float(self._cost(mask[None])[0])
        return Individual(mask, FITNESS_AT_COST[self.mode](), costs=(cost,))

    def _cost(self, masks: BoolArray) -> FloatArray:
        return self.space.costs(masks)[self.space.budgets[0].name]

    def _finite(self) -> list[Individual]:
        return [one for one in self._archive.values() if one.is_finite]

    def _first(self) -> BoolArray:
        share = np.geomspace(self.smallest, 1.0, self.population_size)
        factor = self._factor.values
        drawn = random_masks(self.space, factor, self._rng, len(share), share)
        seeds = np.stack(list(rankings(self.space).values()))
        ends = np.ones((2, self.space.num_channels), dtype=np.bool_)
        uniform = self.space.repair(ends, factor, share=share[[0, len(share) // 2]])
        return np.concatenate([uniform, seeds, drawn[self._rng.permutation(len(drawn))]])

    def _variation(self) -> BoolArray:
        finite = self._finite()
        if not finite:
            return self._first()
        parents = self.toolbox.select(finite, min(len(finite), self.population_size))
        # In the order of their cost: neighbours on the front are neighbours in the list.
        mated = self._mated(self._masks(sorted(parents, key=lambda one: one.costs[0])))
        step = np.exp(_STEP * self._rng.standard_normal(len(mated)))
        share = self._cost(mated) / self.space.budgets[0].limit * step
        share = np.clip(share, self.smallest, 1.0)
        return self.space.repair(self._mutated(mated), self._factor.values, share=share)

    def _learn(self, told: Sequence[Individual]) -> None:
        finite = self._finite()
        if finite:
            everyone = tools.selNSGA2(finite, min(len(finite), 2 * self.population_size))
            elite = everyone[: max(2, self.population_size // 3)]
            self._factor.follow(self._masks(elite), self._masks(everyone))
