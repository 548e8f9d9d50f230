"""What a run must know before it searches: how the network is run, what can go, what it costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import lightning.pytorch as pl
import numpy as np
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_warn

from lightning_slimga.callbacks.internals import (
    FitnessEvaluator,
    broadcast,
    capture_calls,
    share_buffers,
    share_calls,
    training_batches,
)
from lightning_slimga.callbacks.prune.settings import SearchSettings
from lightning_slimga.cost.budget import budgets_for
from lightning_slimga.running.calls import examples_of
from lightning_slimga.search import Budget, SearchSpace
from lightning_slimga.surgery.channel_surgery import ChannelSurgery
from lightning_slimga.surgery.channels_last import runs_channels_last

_NOTEWORTHY = 1e-3  # of the metric; what is less comes from the order of sums on a GPU
_SAMPLES = 2  # enough to run any batch statistics, few enough to make the analysis cheap


class Survey:
    """Collects how the network is run, tries one evaluation, and analyses.

    Args:
        trainer: the Trainer, inside ``fit``.
        pl_module: its LightningModule, as large as it is now.
        settings: the callback's arguments.

    Attributes:
        evaluator: the validation that the search sees.
        dense: its metric of the network as it is.
        noise: how far apart two of them are; 0 if validation is exact.
        training: calls of the training step, on a few batches.
        samples: samples in the example inputs of `surgery`.
        surgery: what can go.
        channels_last: names of the modules that may run in that memory format in evaluations.

    Raises:
        MisconfigurationException: when no call of a module is seen, or no metric.
    """

    def __init__(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, settings: SearchSettings
    ) -> None:
        self._settings = settings
        share_buffers(trainer, pl_module)
        self.evaluator = FitnessEvaluator(
            trainer,
            pl_module,
            settings.monitor,
            limit_batches=settings.fitness_batches,
            shuffled=settings.racing,
        )
        self.dense = self.evaluator()
        self.noise = self._measured_noise()
        count = max(1, settings.recalibration_batches)
        batches = training_batches(trainer, pl_module, count, settings.seed)
        self.training = capture_calls(trainer, pl_module, batches, training=True)
        evaluating = capture_calls(trainer, pl_module, batches[:1], training=False)
        evaluating = evaluating or self.training
        if not evaluating:
            raise MisconfigurationException(
                "`GeneticPruneCallback` finds out how the network is run by watching the module"
                " calls in `training_step` and `validation_step`, but neither calls a module with"
                " parameters (such as `self(x)` or `self.model(x)`)."
            )
        small, samples = examples_of(pl_module, evaluating, _SAMPLES, training=False)
        small, self.samples = share_calls(trainer, small), broadcast(trainer, samples)
        in_training, _ = examples_of(pl_module, self.training, _SAMPLES, training=True)
        in_training = share_calls(trainer, in_training)
        self.surgery = ChannelSurgery(
            pl_module,
            small,
            training_inputs=in_training,
            allow_approximate=settings.allow_approximate,
            ignore=settings.ignore,
            only_scaled=settings.only_scaled,
            min_channels=settings.min_channels,
            round_to=settings.round_to,
        )
        calls = [*small, *in_training]
        quick = {call.module for call in calls} if runs_channels_last(pl_module, calls) else ()
        self.channels_last: list[str] = broadcast(trainer, sorted(quick))

    def _measured_noise(self) -> float:
        """Evaluate the same network again: random numbers are seeded, the user's may not be."""
        again = self.evaluator()
        noise = abs(again - self.dense)
        if not noise > 0:  # or one of them is NaN
            return 0.0
        if noise > _NOTEWORTHY * abs(self.dense):
            rank_zero_warn(
                f"`{self._settings.monitor}` of the same network came out as {self.dense:g} and as"
                f" {again:g}: something random in the validation is not seeded by torch, Python or"
                " NumPy. Differences of that size between candidates mean nothing to the search."
            )
        return noise

    def space(
        self, dense: Mapping[str, float], latency: Callable[[Any], Any] | None = None
    ) -> SearchSpace:
        """Return what may be searched.

        Args:
            dense: costs that fractions of a budget refer to, by its name; those of the network as
                it is where they are missing.
            latency: predicts milliseconds, for a limit on them.

        Raises:
            MisconfigurationException: when nothing can be removed, or no mask meets the budget.
        """
        surgery, settings = self.surgery, self._settings
        if not surgery.num_channels:
            raise MisconfigurationException(
                "`GeneticPruneCallback` found no channel that can be removed:\n"
                + "\n".join(f"  {name}: {why}" for name, _, _, why in surgery.frozen)
            )
        try:
            return SearchSpace(
                [(layer.name, layer.slice) for layer in surgery.layers],
                surgery.scores(),
                self.limits(settings.budget, dense, latency),
                min_channels=settings.min_channels,
                round_to=settings.round_to,
                effects=surgery.effects(),
            )
        except ValueError as error:
            raise MisconfigurationException(str(error)) from error

    def limits(
        self,
        budget: Mapping[str, int | float],
        dense: Mapping[str, float],
        latency: Callable[[Any], Any] | None = None,
    ) -> list[Budget]:
        """Return a user's budget as limits, none above what the network costs as it is.

        Args:
            budget: as `SearchSettings.budget`.
            dense: as for `space`.
            latency: as for `space`.
        """
        full = np.array([layer.num_channels for layer in self.surgery.layers], dtype=np.int64)
        limits = budgets_for(budget, self.surgery.cost, full, self.samples, latency, dense=dense)
        return [replace(one, limit=min(one.limit, one.cost_of(full))) for one in limits]
