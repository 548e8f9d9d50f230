"""What a genetic search has to beat at the same number of evaluations, by the same ask and tell."""

from __future__ import annotations

import numpy as np

from lightning_slimga.search import SearchSpace
from lightning_slimga.search.ask_tell import AskTellSearch
from lightning_slimga.search.factor import EvaluationFactor
from lightning_slimga.search.operators import shift_widths, swap_borderline
from lightning_slimga.search.seeds import random_masks, rankings
from lightning_slimga.search.stopping import Limits
from lightning_slimga.search.widths import BoolArray


class RandomSearch(AskTellSearch):
    """Random widths under budget, in each layer the channels with the highest effects or scores.

    Takes the arguments of `AskTellSearch`.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        population_size: int = 24,
        limits: Limits | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(space, population_size=population_size, limits=limits, seed=seed)
        self._begin()

    def _first(self) -> BoolArray:
        return self._variation()

    def _variation(self) -> BoolArray:
        return random_masks(self.space, self.space.effects, self._rng, self.population_size)


class HillClimbing(AskTellSearch):
    """From the uniform cut, keep a changed candidate whenever it is better than the best.

    One neighbour at a time: a generation is one candidate.
    """

    def __init__(self, space: SearchSpace, *, limits: Limits, seed: int = 0) -> None:
        super().__init__(space, population_size=1, limits=limits, seed=seed)
        self._factor = EvaluationFactor(space, rate=0.0).values
        self._begin()

    def _first(self) -> BoolArray:
        return rankings(self.space)["uniform"][None]

    def _variation(self) -> BoolArray:
        here, bold = self.best[0][None], self._boldness
        widths = self.space.counts(here).astype(np.float64)
        widths = shift_widths(widths, self._rng, layers=1.0, sigma=0.3 * bold)
        rate = bold / self.space.num_layers
        swapped = swap_borderline(self.space, here, self._factor, self._rng, rate=rate, noise=0.15)
        return self.space.repair(swapped, self._factor, widths=widths)
