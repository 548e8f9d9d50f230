"""What a genetic search has to beat at the same number of evaluations, by the same ask and tell."""

from __future__ import annotations

from typing import Any

import numpy as np

from lightning_slimga.search.ask_tell import AskTellSearch
from lightning_slimga.search.factor import EvaluationFactor
from lightning_slimga.search.operators import shift_widths, swap_borderline
from lightning_slimga.search.seeds import random_masks, rankings
from lightning_slimga.search.space import SearchSpace
from lightning_slimga.search.widths import BoolArray


class RandomSearch(AskTellSearch):
    """Random widths under budget, in each layer the channels with the highest effects or scores.

    Takes the arguments of `AskTellSearch`.
    """

    def __init__(self, space: SearchSpace, **settings: Any) -> None:
        super().__init__(space, **settings)
        self._begin()

    def _first(self, boldness: float) -> BoolArray:
        return self._variation(boldness)

    def _variation(self, boldness: float) -> BoolArray:
        return random_masks(self.space, self.space.effects, self._rng, self.population_size)


class HillClimbing(AskTellSearch):
    """From the uniform cut, keep a changed candidate whenever it is better than the best.

    Takes the arguments of `AskTellSearch`; `population_size` is 1 unless given: neighbours tried
    before the best of them is taken.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        population_size: int = 1,
        generations: int = 216,
        **settings: Any,
    ) -> None:
        super().__init__(
            space, population_size=population_size, generations=generations, **settings
        )
        self._factor = EvaluationFactor(space, rate=0.0).values
        self._begin()

    def _first(self, boldness: float) -> BoolArray:
        return rankings(self.space)["uniform"][None]

    def _variation(self, boldness: float) -> BoolArray:
        here = np.repeat(self.best[0][None], self.population_size, axis=0)
        widths = shift_widths(
            self.space.counts(here).astype(np.float64), self._rng, layers=1.0, sigma=0.3 * boldness
        )
        rate = boldness / self.space.num_layers
        swapped = swap_borderline(self.space, here, self._factor, self._rng, rate=rate, noise=0.15)
        return self.space.repair(swapped, self._factor, widths=widths)
