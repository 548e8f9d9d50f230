"""Which network of a front is cut out: the point that is picked, or the smallest that holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import lightning.pytorch as pl
import numpy as np
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_warn

from lightning_slimga.callbacks.internals import broadcast
from lightning_slimga.callbacks.prune.candidates import CandidateEvaluation
from lightning_slimga.callbacks.prune.settings import SearchSettings
from lightning_slimga.cost.budget import LATENCY
from lightning_slimga.search import Budget, Front, ParetoSearch, SearchSpace
from lightning_slimga.search.space import meets
from lightning_slimga.surgery.masking import Mask

_SMALLEST = 0.2
_SMALLEST_THAT_MAY_HOLD = 0.05
"""Lower ends of the costs that are searched, as share of the budget; the second with `max_drop`."""
_BELOW_THE_PICK = 0.8
_TOO_MUCH = 0.5
"""Of what lies between the uncut network and the worst of the front; a pick that loses more may be
no better than guessing."""


@dataclass(frozen=True)
class Choice:
    """A point of a front that is to be cut out.

    Attributes:
        mask: what is kept.
        index: of the point.
        seen: its metric on the front.
        metric: its metric on all validation data.
        floor: the worst metric that was allowed, with `max_drop`.
    """

    mask: Mask
    index: int
    seen: float
    metric: float
    floor: float | None


@dataclass(frozen=True)
class FrontChoice:
    """Makes the search for a front, and chooses from it, or from one that was saved.

    Attributes:
        trainer: the Trainer, inside ``fit``.
        settings: the callback's arguments.
        space: what is searched; its first budget is the cost.
        wanted: what `pick` allows the network to cost; empty where it does not speak of cost.
        candidates: measures networks.
        weights: a hash of the network's weights.
    """

    trainer: pl.Trainer
    settings: SearchSettings
    space: SearchSpace
    wanted: Sequence[Budget]
    candidates: CandidateEvaluation
    weights: str

    @property
    def already_met(self) -> bool:
        """Whether the uncut network is the one that is picked."""
        return bool(self.wanted) and bool(meets(self.wanted, self.space.grid.size[None])[0])

    def make_search(self) -> ParetoSearch:
        """Return a search over all costs of interest.

        Raises:
            MisconfigurationException: when no network is as small as `pick` wants.
        """
        settings, space = self.settings, self.space
        smallest = _SMALLEST if settings.max_drop is None else _SMALLEST_THAT_MAY_HOLD
        for budget in self.wanted:
            least = budget.cost_of(space.grid.lowest)
            if least > budget.limit:
                raise MisconfigurationException(
                    f"Expected argument `pick` to be within reach, but got {settings.pick}, which"
                    f" is {budget.name} {budget.limit:g}: the smallest network has {least:g}."
                )
            if budget.name == space.budgets[0].name:
                share = budget.limit / space.budgets[0].limit
                smallest = min(smallest, _BELOW_THE_PICK * share)
        return ParetoSearch(space, smallest=smallest, **settings.of_search)

    def found(self, search: ParetoSearch) -> Front:
        """Return the front of a search, measured on all validation data."""
        front = Front(
            points=tuple(search.front),
            monitor=self.settings.monitor,
            mode=self.settings.mode,
            budget=self.space.budgets[0].name,
            layers=self._layers,
            full=(self.candidates.uncut_on_everything, self._full_cost),
            weights=self.weights,
        )
        return front if self.settings.fitness_batches is None else self._measured(front)

    def saved(self) -> Front:
        """Return the front that an earlier run has saved.

        Raises:
            MisconfigurationException: when it is one of another network, metric or cost.
        """
        assert self.settings.front is not None
        state: Any = None
        if self.trainer.is_global_zero:
            state = Front.load(self.settings.front).state_dict()
        front = Front.from_state_dict(broadcast(self.trainer, state))
        expected = (self.settings.monitor, self.settings.mode, self.space.budgets[0].name)
        got = (front.monitor, front.mode, front.budget)
        if (got, front.layers) != (expected, self._layers):
            what = f"{got}, and layers {dict(front.layers)}"
            raise MisconfigurationException(
                f"Expected argument `front` to be of this network, by monitor, mode and budget"
                f" {expected}, and layers {dict(self._layers)}, but got one by {what}."
            )
        if front.weights != self.weights:
            rank_zero_warn(
                f"The front in {self.settings.front} was searched with other weights of this"
                " network: its metrics may no longer hold."
            )
            if self.settings.max_drop is not None:
                full = self.candidates.uncut_on_everything, front.full[1]
                return self._measured(replace(front, full=full))
        return front

    def choose(self, front: Front) -> Choice | None:
        """Return what is to be cut out; None, and a warning, where nothing is.

        Raises:
            MisconfigurationException: when there is no such point.
        """
        if not len(front):
            rank_zero_warn("No candidate of the search has a finite metric: nothing was pruned.")
            return None
        drop = self.settings.max_drop
        floor = None if drop is None else front.full[0] - self.settings.sign * drop
        index = self._index(front) if floor is None else self._cheapest(front, floor)
        if index is None:
            return None
        point = front.points[index]
        if point.mask.all():
            rank_zero_warn(
                f"Point {index} of the front, which `pick={self.settings.pick!r}` names, is the"
                " network as it is: nothing was pruned."
            )
            return None
        if not self._is_allowed(point.mask):
            raise MisconfigurationException(
                f"Expected argument `pick` to name a point within the budget"
                f" {dict(self.settings.budget)} (and `min_channels` and `round_to`), but got"
                f" {self.settings.pick!r}: point {index} has {front.budget} {point.cost:g}."
            )
        if floor is None and front.loss(index) > _TOO_MUCH:
            self._warn_of_loss(front, index)
        stored = self.settings.front is not None
        metric = self.candidates.on_everything([point.mask])[0] if stored else point.metric
        return Choice(point.mask, index, point.metric, metric, floor)

    def _index(self, front: Front) -> int:
        pick = self.settings.pick
        if pick == "knee":
            return front.knee()
        if isinstance(pick, int):
            if not -len(front) <= pick < len(front):
                raise MisconfigurationException(
                    f"Expected argument `pick` to be an index of the {len(front)} points of the"
                    f" front, in [{-len(front)}, {len(front)}), but got {pick}. {self._hint}"
                )
            return pick % len(front)
        counts = self.space.counts(np.stack([point.mask for point in front.points]))
        fits = np.flatnonzero(meets(self.wanted, counts))
        if not len(fits):
            raise MisconfigurationException(
                f"Expected argument `pick` to be within reach of the front, whose cheapest network"
                f" has {front.budget} {front.points[0].cost:g}, but got {pick}. {self._hint}"
            )
        return int(fits[-1])

    def _cheapest(self, front: Front, floor: float) -> int | None:
        index = front.cheapest(floor)
        if index is not None and not front.points[index].mask.all():
            return index
        best = [point for point in front.points if not point.mask.all()][-1:]
        reached = "".join(
            f" The best one reaches {point.metric:.4f}, with {point.cost / front.full[1]:.0%} of"
            f" {front.budget}."
            for point in best
        )
        rank_zero_warn(
            f"No smaller network was found whose `{front.monitor}` stays within"
            f" `max_drop={self.settings.max_drop}` of {front.full[0]:.4f}: nothing was pruned."
            f"{reached}"
        )
        return None

    def _warn_of_loss(self, front: Front, index: int) -> None:
        worst, best = front.points[0].metric, front.points[-1].metric
        rank_zero_warn(
            f"Point {index} of the front, which `pick={self.settings.pick!r}` names, has"
            f" {front.monitor} {front.points[index].metric:.4f}: that is more than half of the way"
            f" from the uncut network, {front.full[0]:.4f}, to the worst of the front, {worst:.4f}."
            f" The best of it has {best:.4f}. Fine-tuning may not bring it back. {self._hint}"
        )

    def _is_allowed(self, mask: Mask) -> bool:
        """Whether a saved network suits the arguments of this run; predictions of latency vary."""
        counts = self.space.counts(mask[None])
        exact = [budget for budget in self.space.budgets if budget.name != LATENCY]
        return bool(self.space.is_legal(counts)[0] and meets(exact, counts)[0])

    @property
    def _full_cost(self) -> float:
        return self.space.budgets[0].cost_of(self.space.grid.size)

    @property
    def _hint(self) -> str:
        return "The front is kept: choose from it by `front` and another `pick`."

    @property
    def _layers(self) -> tuple[tuple[str, int], ...]:
        return tuple(zip(self.space.names, self.space.grid.size.tolist(), strict=True))

    def _measured(self, front: Front) -> Front:
        metrics = self.candidates.on_everything([point.mask for point in front.points])
        return front.measured(metrics)
