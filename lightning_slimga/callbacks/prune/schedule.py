"""When a fit is pruned, and to which sizes: what the arguments say of the rounds, checked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_warn

from lightning_slimga.arguments import expect, whole
from lightning_slimga.callbacks.prune.settings import SearchSettings
from lightning_slimga.cost.budget import LATENCY, check_budget


@dataclass(frozen=True)
class Schedule:
    """The rounds that a fit is to have.

    Attributes:
        name: of the argument that has named the epochs.
        epochs: complete epochs before each round.
        budgets: budget of each round.
    """

    name: str
    epochs: tuple[int, ...]
    budgets: tuple[dict[str, int | float], ...]

    @classmethod
    def of(
        cls, prune_epoch: int | None, prune_epochs: Sequence[int] | None, budget: Any
    ) -> Schedule:
        """Check what a user has given.

        Args:
            prune_epoch: complete epochs before the only round; or
            prune_epochs: complete epochs before each round, rising.
            budget: the budget of the only round, or one for each.

        Raises:
            TypeError: when not exactly one of the first two is given, or a budget is no mapping.
            ValueError: when an argument is out of its range, or the budgets do not fit the rounds.
        """
        if (prune_epoch is None) == (prune_epochs is None):
            found = "neither" if prune_epoch is None else "both"
            raise TypeError(
                "Expected either argument `prune_epoch` (one round) or `prune_epochs` (several) to"
                f" be given, but got {found}."
            )
        epochs = _checked_epochs(prune_epoch, prune_epochs)
        name = "prune_epoch" if prune_epochs is None else "prune_epochs"
        return cls(name, epochs, _checked_budgets(budget, len(epochs)))

    @property
    def arguments(self) -> dict[str, Any]:
        """What `of` makes this of, by name."""
        if self.name == "prune_epoch":
            return {"budget": self.budgets[0], self.name: self.epochs[0]}
        return {"budget": list(self.budgets), self.name: list(self.epochs)}

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

    def check(self, trainer: pl.Trainer) -> None:
        """Refuse a fit that ends before the last round.

        Raises:
            MisconfigurationException: naming the epoch.
        """
        last, trial = trainer.max_epochs, trainer.fast_dev_run  # type: ignore[attr-defined]
        if not trial and last is not None and last != -1 and self.epochs[-1] >= last:
            raise MisconfigurationException(
                f"Expected argument `{self.name}` to be below `max_epochs={last}`, so that epochs"
                f" are left for fine-tuning, but got {self.epochs[-1]}."
            )

    def warn_of_few_steps(self, trainer: pl.Trainer) -> None:
        """Say at once when `max_steps` will end the fit before the last round."""
        steps, batches = trainer.max_steps, trainer.num_training_batches
        tried = trainer.fast_dev_run  # type: ignore[attr-defined]
        manual = not trainer.lightning_module.automatic_optimization  # steps as often as it likes
        if tried or manual or steps < 0 or math.isinf(batches):
            return
        needed = self.epochs[-1] * math.ceil(batches / trainer.accumulate_grad_batches)
        if steps <= needed:
            rank_zero_warn(
                f"`max_steps={steps}` will end the fit before `{self.name}={self.epochs[-1]}`,"
                f" which takes {needed} steps: nothing will be pruned by then. Raise `max_steps`"
                f" above {needed}, or lower `{self.name}`."
            )


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
