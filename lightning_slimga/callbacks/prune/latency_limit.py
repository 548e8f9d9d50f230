"""A limit on latency inside a fit: calibrated once, kept with the search, checked in the end."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_slimga.callbacks.internals import broadcast
from lightning_slimga.cost.budget import LATENCY
from lightning_slimga.cost.latency import LatencyBench
from lightning_slimga.running.calls import examples_of
from lightning_slimga.search import SearchSpace
from lightning_slimga.surgery.channel_surgery import ChannelSurgery
from lightning_slimga.surgery.masking import Mask

_ATTEMPTS = 5


class LatencyLimit:
    """Predicts latency for the search, and brings its finalists under the limit as measured.

    What is timed is one sample in evaluation mode on the module's device (or the whole example, if
    the network does not run on one sample). Rank 0 measures; all ranks use what it has found.

    Args:
        trainer: the Trainer; every rank must make the call.
        surgery: what cuts the module.
        limit: milliseconds.
        state: what `state_dict` was when the search was interrupted: a search that goes on must
            see the same predictions.

    Attributes:
        model: milliseconds of networks by their kept channels.
    """

    def __init__(
        self,
        trainer: pl.Trainer,
        surgery: ChannelSurgery,
        limit: float,
        state: dict[str, Any] | None = None,
    ) -> None:
        self._trainer, self._surgery, self._limit = trainer, surgery, limit
        counted = [call for call in surgery.calls if call.counted]
        calls, _ = examples_of(surgery.model, counted, 1, training=False)
        self._bench = LatencyBench(surgery, calls)
        if state is None:
            measured = self._bench.calibrated().state_dict() if trainer.is_global_zero else None
            state = broadcast(trainer, measured)
            assert state is not None
            rank_zero_info(
                f"the full network takes {state['full_ms']:.3f} ms; others are predicted with a"
                f" median error of {state['error']:.1%}"
            )
        self.model = self._bench.restored(state)

    def state_dict(self) -> dict[str, Any]:
        """Return the calibration, plain data."""
        return self.model.state_dict()

    def holds(self, mask: Mask) -> bool:
        """Whether a network keeps the limit as measured; every rank must make the call."""
        return self._measured(mask) <= self._limit

    def held(self, masks: Sequence[Mask], space: SearchSpace) -> list[Mask]:
        """Bring masks under the limit as measured, by the repair of the search.

        Args:
            masks: finalists; every rank must pass the same ones.
            space: what was searched.

        Returns:
            Masks that hold the limit, in the same order. Where even the smallest network is too
            slow, which then is the result, a warning says so.
        """
        return [self._tightened(mask, space) for mask in masks]

    def _measured(self, mask: Mask) -> float:
        own = None
        if self._trainer.is_global_zero:
            own = self._bench.measure(mask, self.model.full_ms)
        milliseconds = broadcast(self._trainer, own)
        assert milliseconds is not None
        return milliseconds

    def _tightened(self, mask: Mask, space: SearchSpace) -> Mask:
        for _ in range(_ATTEMPTS):
            measured = self._measured(mask)
            if measured <= self._limit:
                return mask
            predicted = float(self.model(self._surgery.counts(mask)[None])[0])
            bound = self._limit * min(predicted / measured, 0.98)
            rank_zero_info(
                f"a finalist takes {measured:.3f} ms instead of {predicted:.3f} ms, limit"
                f" {self._limit:g}: its limit is tightened to {bound:.3f} ms as predicted"
            )
            mask = _limited(space, bound).repair(mask[None], space.scores)[0]
        rank_zero_warn(
            f"No network was found that holds the limit of {self._limit:g} ms as measured; the one"
            f" that was taken needs {self._measured(mask):.3f} ms."
        )
        return mask


def _limited(space: SearchSpace, bound: float) -> SearchSpace:
    """The same space with another limit on latency; out of reach, repair gives the smallest."""
    tightened = copy.copy(space)
    tightened.budgets = tuple(
        replace(budget, limit=bound) if budget.name == LATENCY else budget
        for budget in space.budgets
    )
    return tightened
