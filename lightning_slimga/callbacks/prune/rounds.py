"""How far a fit has come with its rounds of pruning, and what they have cut."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn

from lightning_slimga.callbacks.internals import averaged_models
from lightning_slimga.callbacks.prune.result import PruningResult
from lightning_slimga.callbacks.prune.schedule import Schedule
from lightning_slimga.cost.budget import KNOWN_BUDGETS
from lightning_slimga.surgery.checkpoint import (
    apply_plans,
    composed,
    plans_of,
    read_plans,
    remember_plan,
)
from lightning_slimga.surgery.plan import PruningPlan


@dataclass(frozen=True)
class Round:
    """One round of pruning.

    Attributes:
        number: counted from 1.
        of: rounds in all.
        budget: what the network may cost after it.
        dense: costs of the network at the start of the fit, by budget name, to which fractions
            refer; empty before the first surgery, where that is the network as it is.
        generations: generations of earlier rounds.
    """

    number: int
    of: int
    budget: Mapping[str, int | float]
    dense: Mapping[str, float] = field(default_factory=dict)
    generations: int = 0

    @property
    def suffix(self) -> str:
        """Tells files of several rounds apart."""
        return "" if self.of == 1 else f"_{self.number}"


class Rounds:
    """How far one fit has come.

    Args:
        schedule: the rounds that it is to have.

    Attributes:
        done: rounds that are over, whether they have cut something or not.
        plans: what this fit has cut, oldest first.
        plan: one plan for all that the module has been through, or None.
        history: the generations of all rounds.
        timings: seconds by part of all rounds.
    """

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self.done = 0
        self.plans: list[PruningPlan] = []
        self.plan: PruningPlan | None = None
        self.history: list[dict[str, Any]] = []
        self.timings: dict[str, float] = {}

    def belong_to(self, module: nn.Module) -> bool:
        """Whether the plans are the last ones that a module has been through."""
        last = plans_of(module)[-len(self.plans) :]
        return bool(self.plans) and [id(p) for p in last] == [id(p) for p in self.plans]

    @property
    def finished(self) -> bool:
        """Whether no round is left."""
        return self.done == len(self._schedule.epochs)

    def is_due(self, epoch: int) -> bool:
        """Whether a round is to begin once so many epochs are complete."""
        return not self.finished and epoch >= self._schedule.epochs[self.done]

    @property
    def current(self) -> Round:
        """The round that comes next."""
        dense: dict[str, float] = {}
        if self.plans:
            costs = self.plans[0].summary
            dense = {name: float(costs[name][0]) for name in KNOWN_BUDGETS if name in costs}
        budgets = self._schedule.budgets
        budget = budgets[self.done]
        return Round(self.done + 1, len(budgets), budget, dense, len(self.history))

    def take_over(self, module: nn.Module, result: PruningResult, *, complete: bool) -> None:
        """Keep what a run leaves behind, whether it has come to its end or not.

        Once the network is small the plan belongs into every checkpoint, also when something
        (a callback's `on_surgery`, say) fails after the cut.
        """
        if result.plan is not None:
            remember_plan(module, result.plan)
            self.plans.append(result.plan)
            self.plan = composed(plans_of(module))
        if complete or result.plan is not None:
            number = {"round": self.done + 1} if len(self._schedule.epochs) > 1 else {}
            self.history += [{**entry, **number} for entry in result.history]
            for part, seconds in result.timings.items():
                self.timings[part] = self.timings.get(part, 0.0) + seconds
            self.done += 1

    def warn_of_early_end(self, trainer: pl.Trainer) -> None:
        """Say which rounds have not come about, of a fit that has not finished them."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        name, epochs = self._schedule.name, self._schedule.epochs
        last = epochs[-1]
        rounds = f"{self.done} of {len(epochs)} rounds are done"
        what = rounds if self.done else "nothing was pruned"
        way_out = f"`Trainer(min_epochs={last + 1})` keeps early stopping from ending it before."
        if 0 <= trainer.max_steps <= trainer.global_step:  # which goes before `min_epochs`
            way_out = f"`max_steps={trainer.max_steps}` has ended it: raise that."
        rank_zero_warn(
            f"The fit ended after {trainer.current_epoch} epochs, before"
            f" `{name}={epochs[self.done]}`: {what}. {way_out}"
        )

    def plans_for(
        self, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> list[PruningPlan]:
        """Return the plans that a checkpoint's network has been through, none for a dense one.

        Raises:
            ValueError: when the module is smaller than the checkpoint.
        """
        plans = read_plans(checkpoint)
        if len(plans) < len(plans_of(pl_module)):
            kind = "one of an earlier round" if plans else "a full-size one"
            raise ValueError(
                f"The checkpoint is {kind}, but this {type(pl_module).__name__} has been pruned."
                " Load it into a freshly built module."
            )
        return plans

    def shrink(self, pl_module: pl.LightningModule, plans: list[PruningPlan]) -> None:
        """Bring a full-size module to a checkpoint's size before its weights are loaded."""
        for model in (pl_module, *averaged_models(pl_module.trainer)):
            apply_plans(model, plans)
        self.plans, self.plan = plans, composed(plans)
        rank_zero_info(f"The checkpoint is pruned: {type(pl_module).__name__} was shrunk.")

    def state_dict(self) -> dict[str, Any]:
        """Return plain data; the plans stand in the checkpoint already."""
        return {
            "done": self.done,
            "cuts": len(self.plans),
            "history": self.history,
            "timings": self.timings,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken, after `shrink`."""
        self.done = state["done"]
        self.plans = self.plans[len(self.plans) - state["cuts"] :]
        self.history, self.timings = list(state["history"]), dict(state["timings"])
