"""What a run must know before it searches: how the network is run, what can go, what it costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import lightning.pytorch as pl
import numpy as np
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_slimga.arguments import SURGERY
from lightning_slimga.callbacks.internals import (
    FitnessEvaluator,
    broadcast,
    capture_calls,
    share_buffers,
    training_batches,
)
from lightning_slimga.callbacks.internals.quiet import traceless
from lightning_slimga.callbacks.prune.copies import Copies, tell
from lightning_slimga.callbacks.prune.examples import ExampleFinder
from lightning_slimga.callbacks.prune.settings import SearchSettings
from lightning_slimga.callbacks.prune.twins import Follower, trained_parameters
from lightning_slimga.cost.budget import budgets_for, share_of
from lightning_slimga.running.calls import Call
from lightning_slimga.running.model_state import kept_buffers
from lightning_slimga.search import Budget, SearchSpace
from lightning_slimga.surgery.channel_surgery import ChannelSurgery
from lightning_slimga.surgery.channels_last import runs_channels_last

_NOTEWORTHY = 1e-3  # of the metric; what is less comes from the order of sums on a GPU


@dataclass(frozen=True)
class Survey:
    """How the network is run, what one evaluation gives, and what the analysis has found.

    Attributes:
        module: the LightningModule, as large as it is now.
        settings: the callback's arguments.
        evaluator: the validation that the search sees.
        dense: its metric of the network as it is.
        noise: how far apart two of them are; 0 if validation is exact.
        training: calls of the training step, on a few batches.
        moved: names of the layers whose running statistics that step changes.
        surgery: what can go.
        samples: samples in the example inputs of `surgery`.
        followers: copies outside of the module, which are cut along.
        channels_last: names of the modules that may run in that memory format in evaluations.
    """

    module: pl.LightningModule
    settings: SearchSettings
    evaluator: FitnessEvaluator
    dense: float
    noise: float
    training: Sequence[Call]
    moved: frozenset[str]
    surgery: ChannelSurgery
    samples: int
    followers: Sequence[Follower]
    channels_last: Sequence[str]

    @classmethod
    def of(
        cls,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        settings: SearchSettings,
        copies: Copies,
    ) -> Survey:
        """Collect how the network is run, try evaluations, and analyse; every rank must do so.

        Args:
            trainer: the Trainer, inside ``fit``.
            pl_module: its LightningModule.
            settings: the callback's arguments.
            copies: what is cut along.

        Raises:
            MisconfigurationException: when no call of a module is seen, or no metric.
        """
        share_buffers(trainer, pl_module)
        evaluator = FitnessEvaluator(
            trainer,
            pl_module,
            settings.monitor,
            limit_batches=settings.fitness_batches,
            shuffled=settings.racing,
        )
        followers = copies.followers(trainer)
        with ExitStack() as stack:
            for one in followers:  # what is no part of the module nobody else looks after
                stack.enter_context(kept_buffers(one.module))
            dense = evaluator()
            noise = _measured_noise(evaluator, dense, settings.monitor)
            training, evaluating, moved = _recorded(trainer, pl_module, settings)
        trained = None if settings.prune_untrained else trained_parameters(trainer, pl_module)
        with traceless(trainer):  # a network may reach for more than what it is made of
            examples = ExampleFinder(trainer, pl_module, settings).find(training, evaluating)
            surgery = ChannelSurgery(
                pl_module,
                examples.evaluating,
                training_inputs=examples.training,
                twins=copies.pairs(trainer),
                trained=trained,
                **{name: getattr(settings, name) for name in SURGERY},
            )
            calls = [*examples.evaluating, *examples.training]
            quick = {call.module for call in calls} if runs_channels_last(pl_module, calls) else ()
        last: list[str] = broadcast(trainer, sorted(quick))
        return cls(
            module=pl_module,
            settings=settings,
            evaluator=evaluator,
            dense=dense,
            noise=noise,
            training=training,
            moved=moved,
            surgery=surgery,
            samples=examples.samples,
            followers=followers,
            channels_last=last,
        )

    def tell(self) -> None:
        """Name what follows, what stays because nobody trains it, and what no call has reached."""
        tell(self.surgery.twins, self.followers, self.surgery.untrained)
        _tell_unreached(self.surgery)

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
        surgery, settings = self.surgery, self.settings
        if not surgery.num_channels:
            raise MisconfigurationException(
                "`GeneticPruneCallback` found no channel that can be removed:\n"
                + "\n".join(f"  {name}: {why}" for name, _, _, why in surgery.frozen)
            )
        try:
            return SearchSpace(
                [(layer.name, layer.slice) for layer in surgery.layers],
                surgery.scores(),
                self._limits(settings.budget, dense, latency),
                min_channels=settings.min_channels,
                round_to=settings.round_to,
                effects=surgery.effects(),
            )
        except ValueError as error:
            raise MisconfigurationException(str(error)) from error

    def wanted(
        self,
        space: SearchSpace,
        dense: Mapping[str, float],
        latency: Callable[[Any], Any] | None = None,
    ) -> list[Budget]:
        """Return what `pick` allows the network to cost; nothing where it does not speak of cost.

        Args:
            space: what is searched; a share refers to what its first budget counts.
            dense: as for `space`.
            latency: as for `space`.
        """
        pick, first = self.settings.pick, space.budgets[0]
        if isinstance(pick, float):
            full = dense.get(first.name, first.cost_of(space.grid.size))
            limit = share_of(full, pick, self._apart.get(first.name, 0.0))
            return [replace(first, limit=limit)]
        return self._limits(pick, dense, latency) if isinstance(pick, Mapping) else []

    @property
    def _apart(self) -> dict[str, float]:
        """What fractions do not refer to: the cost of networks that nobody trains, per sample."""
        costs = self.surgery.untrained_costs
        return {"macs": costs["macs"] / self.samples, "params": float(costs["params"])}

    def _limits(
        self,
        budget: Mapping[str, int | float],
        dense: Mapping[str, float],
        latency: Callable[[Any], Any] | None,
    ) -> list[Budget]:
        """A user's budget as limits, none above what the network costs as it is."""
        full = np.array([layer.num_channels for layer in self.surgery.layers], dtype=np.int64)
        limits = budgets_for(
            budget,
            self.surgery.cost,
            full,
            self.samples,
            latency,
            dense=dense,
            apart=self._apart,
        )
        return [replace(one, limit=min(one.limit, one.cost_of(full))) for one in limits]


def _measured_noise(evaluator: FitnessEvaluator, dense: float, monitor: str) -> float:
    """Evaluate the same network again: random numbers are seeded, the user's may not be."""
    again = evaluator()
    noise = abs(again - dense)
    if not noise > 0:  # or one of them is NaN
        return 0.0
    if noise > _NOTEWORTHY * abs(dense):
        rank_zero_warn(
            f"`{monitor}` of the same network came out as {dense:g} and as {again:g}: something"
            " random in the validation is not seeded by torch, Python or NumPy. Differences of that"
            " size between candidates mean nothing to the search."
        )
    return noise


def _tell_unreached(surgery: ChannelSurgery) -> None:
    """Name what no call has reached; a warning where it could read channels that go."""
    unreached = surgery.unreached
    if unreached:
        say = rank_zero_warn if any(one.layers for one in unreached) else rank_zero_info
        say(
            f"No call in training, validation or prediction has reached"
            f" {', '.join(map(str, unreached))}: left as it is. Where it reads channels that are"
            " cut, it fails afterwards: show a call by `GeneticPruneCallback(example_calls=...)`,"
            " or name in `ignore` what it reads."
        )


def _recorded(
    trainer: pl.Trainer, pl_module: pl.LightningModule, settings: SearchSettings
) -> tuple[list[Call], list[Call], frozenset[str]]:
    """The calls that training and validation make, and whose statistics training changes."""
    moved: set[str] = set()
    count = max(1, settings.recalibration_batches)
    batches = training_batches(trainer, pl_module, count, settings.seed)
    training = capture_calls(trainer, pl_module, batches, training=True, moved=moved)
    evaluating = capture_calls(trainer, pl_module, batches[:1], training=False) or training
    if not evaluating:
        raise MisconfigurationException(
            "`GeneticPruneCallback` finds out how the network is run by watching the module"
            " calls in `training_step` and `validation_step`, but neither calls a module with"
            " parameters (such as `self(x)` or `self.model(x)`)."
        )
    return training, evaluating, frozenset(moved)
