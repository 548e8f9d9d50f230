"""The learning rate after surgery: as it is, warmed up again, or its schedule from the start."""

from __future__ import annotations

import copy
from typing import Any, Literal

import lightning.pytorch as pl
from torch.optim import Optimizer

RatePolicy = Literal["keep", "rewarm", "restart"]

_MOST_BATCHES = 1000
"""The longest warm-up, for epochs that are longer or have no known length."""
_CYCLED = ("lr", "momentum", "betas")
"""What schedules change in a parameter group."""


class FinetuneRate:
    """Handles the learning rates of a fit after surgery.

    "rewarm" lets each step use a part of the scheduled rate, which rises linearly to the whole over
    the epoch that begins with surgery; the schedule itself does not learn of it. "restart" brings
    rates and schedules back to where they were when the fit began ("learning rate rewinding", Renda
    et al., "Comparing rewinding and fine-tuning in neural network pruning", ICLR 2020). With
    several surgeries either happens after each of them.

    Args:
        policy: "keep", "rewarm" or "restart".
    """

    def __init__(self, policy: RatePolicy) -> None:
        self.policy = policy
        self._epoch: int | None = None
        self._first: dict[str, Any] | None = None
        self._share = 1.0
        self._scheduled: dict[Optimizer, list[Any]] = {}
        self._handles: list[Any] = []

    def start(self, trainer: pl.Trainer) -> None:
        """The fit begins, or goes on: remember the beginning, and get between the steps."""
        self.stop()
        if self.policy == "restart" and self._first is None:
            self._first = _rates(trainer)
        if self.policy == "rewarm":
            for optimizer in trainer.optimizers:
                self._handles.append(optimizer.register_step_pre_hook(self._reduce))
                self._handles.append(optimizer.register_step_post_hook(self._restore))

    def after_surgery(self, trainer: pl.Trainer) -> None:
        """The network has just become small."""
        self._epoch = trainer.current_epoch
        if self._first is not None:
            _put_back(copy.deepcopy(self._first), trainer)

    def before_batch(self, trainer: pl.Trainer, batch_idx: int) -> None:
        """Find the part of the scheduled rate for the steps on one batch."""
        batches = min(trainer.num_training_batches, _MOST_BATCHES)
        warm = self.policy != "rewarm" or trainer.current_epoch != self._epoch
        self._share = 1.0 if warm else min(1.0, (batch_idx + 1) / batches)

    def restore(self) -> None:
        """Give the scheduled rates back to optimizers that an exception has ended in a step."""
        for optimizer in list(self._scheduled):
            self._restore(optimizer)

    def stop(self) -> None:
        """Leave nothing behind on the optimizers."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def state_dict(self) -> dict[str, Any]:
        """Plain data, as far as the states of the schedules are."""
        return {"epoch": self._epoch, "first": self._first}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where a checkpoint stands."""
        self._epoch, self._first = state["epoch"], state["first"]

    def _reduce(self, optimizer: Optimizer, *_: Any) -> None:
        if self._share < 1.0:
            self._scheduled[optimizer] = [group["lr"] for group in optimizer.param_groups]
            for group in optimizer.param_groups:
                group["lr"] = group["lr"] * self._share

    def _restore(self, optimizer: Optimizer, *_: Any) -> None:
        rates = self._scheduled.pop(optimizer, [])
        for group, rate in zip(optimizer.param_groups, rates, strict=False):
            group["lr"] = rate


def _rates(trainer: pl.Trainer) -> dict[str, Any]:
    """Rates and schedules as they are now."""
    schedules = [config.scheduler for config in trainer.lr_scheduler_configs]
    groups = [[_cycled(g) for g in optimizer.param_groups] for optimizer in trainer.optimizers]
    states = [[type(schedule).__name__, schedule.state_dict()] for schedule in schedules]
    return copy.deepcopy({"groups": groups, "schedules": states})


def _put_back(rates: dict[str, Any], trainer: pl.Trainer) -> None:
    """Undo what has happened to rates and schedules; what was added meanwhile stays."""
    for optimizer, groups in zip(trainer.optimizers, rates["groups"], strict=False):
        for group, cycled in zip(optimizer.param_groups, groups, strict=False):
            group.update(cycled)
    configs = trainer.lr_scheduler_configs
    for config, (kind, state) in zip(configs, rates["schedules"], strict=False):
        if type(config.scheduler).__name__ == kind:  # else somebody has replaced it
            config.scheduler.load_state_dict(state)


def _cycled(group: dict[str, Any]) -> dict[str, Any]:
    return {name: group[name] for name in _CYCLED if name in group}
