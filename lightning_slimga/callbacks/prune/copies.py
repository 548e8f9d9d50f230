"""What a fit knows of the copies that are cut along with their originals, and says of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_slimga.arguments import check_twins
from lightning_slimga.callbacks.internals import broadcast
from lightning_slimga.callbacks.prune.twins import (
    Follower,
    followers_outside,
    followers_within,
    loose_tensors,
    trained_parameters,
)
from lightning_slimga.graph.exclusions import matching
from lightning_slimga.graph.twins import Pair
from lightning_slimga.surgery.checkpoint import apply_plans
from lightning_slimga.surgery.plan import PruningPlan


class Copies:
    """The copies of one fit.

    What may be one is looked at before the first batch of each epoch; it is one if its weights have
    moved when a search begins.

    Args:
        wanted: the argument `twins` of the callback.
        ignore: patterns of modules that are to stay whole, so that they follow nobody.
    """

    def __init__(self, wanted: Any, ignore: Sequence[str]) -> None:
        self._wanted, self._ignore = wanted, ignore
        self._pairs: list[Pair] = []
        self._outside: list[str] = []
        self._sums: dict[str, list[float]] = {}
        self._moving: list[str] = []
        self._warned: set[str] = set()

    def check(self, pl_module: pl.LightningModule) -> None:
        """Refuse pairs that the module does not have.

        Raises:
            ValueError: naming the pair.
        """
        if isinstance(self._wanted, tuple):
            check_twins(pl_module, self._wanted)

    def look(self, trainer: pl.Trainer) -> None:
        """See which of what may be a copy has moved since it was first seen."""
        if self._wanted is False:
            return
        self._warn(trainer)
        for one in (*self._within(trainer), *self._without(trainer)):
            if self._moves(one) and one.where not in self._moving:
                self._moving.append(one.where)
            self._sums.setdefault(one.where, one.sums)

    def pairs(self, trainer: pl.Trainer) -> list[Pair]:
        """Names of modules and their copies in the LightningModule; every rank must ask."""
        if self._wanted is False:
            return []
        if self._wanted != "auto":
            return list(self._wanted)
        known = {copy for _, copy in self._pairs}
        moving = [one for one in self._within(trainer) if self._moves(one)]
        for pattern in self._ignore:
            known |= matching((one.where for one in moving), pattern)
        new = [(one.student, one.where) for one in moving if one.where not in known]
        self._pairs = broadcast(trainer, [*self._pairs, *new])
        return self._pairs

    def followers(self, trainer: pl.Trainer) -> list[Follower]:
        """Copies that are no part of the LightningModule; every rank must ask."""
        if self._wanted is False:
            return []
        found = self._without(trainer)
        moving = [one.where for one in found if self._moves(one) and one.where not in self._outside]
        self._outside = broadcast(trainer, [*self._outside, *moving])
        return [one for one in found if one.where in self._outside]

    def shrink(
        self, trainer: pl.Trainer, plans: Sequence[PruningPlan], state: Mapping[str, Any]
    ) -> None:
        """Cut followers of a full-size module that is about to be shrunk for a checkpoint.

        Args:
            trainer: the Trainer.
            plans: what has been cut.
            state: what `state_dict` was when the checkpoint was written.
        """
        names = [name for name, _ in trainer.lightning_module.named_parameters()]
        for one in followers_outside(trainer, names):
            if one.where in state.get("outside", ()):
                apply_plans(one.module, [plan.within(one.student) for plan in plans])

    def _within(self, trainer: pl.Trainer) -> list[Follower]:
        trained = trained_parameters(trainer, trainer.lightning_module)
        auto = self._wanted == "auto" and trained
        return followers_within(trainer.lightning_module, trained or ()) if auto else []

    def _without(self, trainer: pl.Trainer) -> list[Follower]:
        trained = trained_parameters(trainer, trainer.lightning_module)
        return followers_outside(trainer, trained) if trained else []

    def _moves(self, one: Follower) -> bool:
        """Whether training changes it, though no optimizer does."""
        if one.averaged or one.where in self._moving:
            return True
        sums = one.sums
        return self._sums.get(one.where, sums) != sums

    def _warn(self, trainer: pl.Trainer) -> None:
        for where, student in loose_tensors(trainer).items():
            if where not in self._warned:
                self._warned.add(where)
                rank_zero_warn(
                    f"`{where}` holds copies of the parameters of"
                    f" `{student or type(trainer.lightning_module).__name__}`, as plain tensors,"
                    " which are not cut along with them. Cut them in"
                    " `on_surgery(trainer, pl_module, plan)` of the callback or LightningModule"
                    " that keeps them: `plan.tensors[name].take(tensor)`."
                )

    def state_dict(self) -> dict[str, Any]:
        """Return plain data: a resumed fit must search the same channels."""
        pairs = [list(pair) for pair in self._pairs]
        moving, sums = list(self._moving), dict(self._sums)
        return {"pairs": pairs, "outside": list(self._outside), "moving": moving, "sums": sums}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what was found."""
        self._pairs = [(first, copy) for first, copy in state["pairs"]]
        self._outside, self._moving = list(state["outside"]), list(state["moving"])
        self._sums = dict(state["sums"])


def tell(pairs: Sequence[Pair], followers: Sequence[Follower], untrained: Sequence[str]) -> None:
    """Say what is cut along, and what is not cut because nobody trains it."""
    copies = [f"{copy} (as {first})" for first, copy in pairs]
    copies += [f"{one.where} (as {one.student or 'the whole module'})" for one in followers]
    if copies:
        rank_zero_info(
            f"Copies lose the channels that their originals lose: {', '.join(copies)};"
            " `twins=False` ends that."
        )
    if untrained:
        rank_zero_info(
            f"Nobody trains {', '.join(untrained)}: what only they make stays, and fractions in"
            " `budget` leave them out; `prune_untrained=True` ends that."
        )
