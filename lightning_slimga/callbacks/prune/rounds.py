"""The rounds of pruning that a fit goes through, and how far it has come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn

from lightning_slimga.arguments import expect, whole
from lightning_slimga.callbacks.internals import averaged_models
from lightning_slimga.callbacks.prune.settings import PruningResult, SearchSettings
from lightning_slimga.cost.budget import KNOWN_BUDGETS, LATENCY, check_budget
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
    """The rounds of one fit.

    Args:
        prune_epoch: complete epochs before the only round; or
        prune_epochs: complete epochs before each round, rising.
        budget: the budget of the only round, or one for each.

    Attributes:
        epochs: complete epochs before each round.
        budgets: budget of each round.
        done: rounds that are over, whether they have cut something or not.
        plans: what this fit has cut, oldest first.
        plan: one plan for all that the module has been through, or None.
        history: the generations of all rounds.
        timings: seconds by part of all rounds.

    Raises:
        TypeError: when not exactly one of the first two is given, or a budget is no mapping.
        ValueError: when an argument is out of its range, or the budgets do not fit the rounds.
    """

    def __init__(
        self, prune_epoch: int | None, prune_epochs: Sequence[int] | None, budget: Any
    ) -> None:
        if (prune_epoch is None) == (prune_epochs is None):
            found = "neither" if prune_epoch is None else "both"
            raise TypeError(
                "Expected either argument `prune_epoch` (one round) or `prune_epochs` (several) to"
                f" be given, but got {found}."
            )
        self.epochs = _checked_epochs(prune_epoch, prune_epochs)
        self.budgets = _checked_budgets(budget, len(self.epochs))
        self._name = "prune_epoch" if prune_epochs is None else "prune_epochs"
        self.begin_anew()

    def check_choice(self, settings: SearchSettings) -> None:
        """Refuse arguments that leave a later round nothing to do.

        Raises:
            ValueError: naming the argument.
        """
        if len(self.epochs) == 1:
            return
        alone = settings.max_drop is None and settings.front is None
        expect(alone, "prune_epochs", "one round with `max_drop` or `front`", self.epochs)
        sized = isinstance(settings.pick, (float, Mapping))
        expect(
            not sized,
            "pick",
            "None, 'knee' or an int with several rounds (what else it may be names a size, which"
            " every round after the first would meet already)",
            settings.pick,
        )
        for number in range(2, len(self.budgets) + 1) if settings.pick is None else ():
            expect(
                not _is_met_by(self.budgets[: number - 1], self.budgets[number - 1]),
                "budget",
                f"smaller in every round, but round {number} would have nothing to do (fractions"
                " refer to the network at the start of the fit)",
                list(self.budgets),
            )

    def begin_anew(self) -> None:
        """Another module: nothing has been cut."""
        self.done = 0
        self.plans: list[PruningPlan] = []
        self.plan: PruningPlan | None = None
        self.history: list[dict[str, Any]] = []
        self.timings: dict[str, float] = {}

    def belong_to(self, module: nn.Module) -> bool:
        """Whether the plans are the last ones that a module has been through."""
        last = plans_of(module)[-len(self.plans) :]
        return bool(self.plans) and [id(p) for p in last] == [id(p) for p in self.plans]

    def check(self, trainer: pl.Trainer) -> None:
        """Refuse a fit that ends before the last round.

        Raises:
            MisconfigurationException: naming the epoch.
        """
        last, trial = trainer.max_epochs, trainer.fast_dev_run  # type: ignore[attr-defined]
        if not trial and last is not None and last != -1 and self.epochs[-1] >= last:
            raise MisconfigurationException(
                f"Expected argument `{self._name}` to be below `max_epochs={last}`, so that epochs"
                f" are left for fine-tuning, but got {self.epochs[-1]}."
            )

    @property
    def finished(self) -> bool:
        """Whether no round is left."""
        return self.done == len(self.epochs)

    def is_due(self, epoch: int) -> bool:
        """Whether a round is to begin once so many epochs are complete."""
        return not self.finished and epoch >= self.epochs[self.done]

    @property
    def current(self) -> Round:
        """The round that comes next."""
        dense: dict[str, float] = {}
        if self.plans:
            costs = self.plans[0].summary
            dense = {name: float(costs[name][0]) for name in KNOWN_BUDGETS if name in costs}
        return Round(
            self.done + 1, len(self.epochs), self.budgets[self.done], dense, len(self.history)
        )

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
            number = {"round": self.done + 1} if len(self.epochs) > 1 else {}
            self.history += [{**entry, **number} for entry in result.history]
            for part, seconds in result.timings.items():
                self.timings[part] = self.timings.get(part, 0.0) + seconds
            self.done += 1

    def warn_of_early_end(self, trainer: pl.Trainer) -> None:
        """Say which rounds have not come about, of a fit that has not finished them."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        epoch, last = self.epochs[self.done], self.epochs[-1]
        rounds = f"{self.done} of {len(self.epochs)} rounds are done"
        what = rounds if self.done else "nothing was pruned"
        rank_zero_warn(
            f"The fit ended after {trainer.current_epoch} epochs, before `{self._name}={epoch}`:"
            f" {what}. `Trainer(min_epochs={last + 1})` keeps early stopping from ending it before."
        )

    def shrink(self, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Bring a full-size module to a checkpoint's size before its weights are loaded.

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
        if plans:
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


def _checked_epochs(one: int | None, several: Sequence[int] | None) -> tuple[int, ...]:
    if several is None:
        return (whole(1).check("prune_epoch", one),)
    wanted = "a rising list of whole numbers of at least 1"
    expect(isinstance(several, Sequence) and len(several) > 0, "prune_epochs", wanted, several)
    epochs = tuple(whole(1).check("prune_epochs", epoch) for epoch in several)
    expect(all(a < b for a, b in pairwise(epochs)), "prune_epochs", wanted, several)
    return epochs


def _checked_budgets(budget: Any, rounds: int) -> tuple[dict[str, int | float], ...]:
    if not isinstance(budget, (list, tuple)):
        checked = check_budget(budget)
        expect(
            rounds == 1,
            "budget",
            f"a list of {rounds} mappings, one for each of `prune_epochs` (fractions refer to the"
            " dense network, so one for all would be met after the first round)",
            budget,
        )
        return (checked,)
    mappings = tuple(check_budget(one) for one in budget)
    expect(len(mappings) == rounds, "budget", f"one mapping, or a list of {rounds}", budget)
    return mappings


def _is_met_by(
    earlier: Sequence[Mapping[str, int | float]], budget: Mapping[str, int | float]
) -> bool:
    """Whether a network within earlier budgets is within this one, whatever the network."""
    return all(
        any(
            name in one
            and one[name] <= limit
            and (name == LATENCY or (one[name] <= 1) == (limit <= 1))  # shares, or both absolute
            for one in earlier
        )
        for name, limit in budget.items()
    )
