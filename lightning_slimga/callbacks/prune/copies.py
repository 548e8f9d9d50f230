"""What a fit knows of the copies that are cut along with their originals, and says of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_slimga.arguments import check_twins
from lightning_slimga.callbacks.internals import broadcast
from lightning_slimga.callbacks.prune.twins import (
    Follower,
    followers_outside,
    loose_tensors,
    trained_parameters,
    twins_within,
)
from lightning_slimga.graph.exclusions import matching
from lightning_slimga.graph.twins import Pair
from lightning_slimga.surgery.checkpoint import apply_plans
from lightning_slimga.surgery.plan import PruningPlan


class Copies:
    """The copies of one fit.

    They are looked for before its first batch, when a copy is most like its original, and once
    more before a search, since some are made on the way.

    Args:
        wanted: the argument `twins` of the callback.
        ignore: patterns of modules that are to stay whole, so that they follow nobody.
    """

    def __init__(self, wanted: Any, ignore: Sequence[str]) -> None:
        self._wanted, self._ignore = wanted, ignore
        self._pairs: list[Pair] | None = None
        self._warned: set[str] = set()

    def check(self, pl_module: pl.LightningModule) -> None:
        """Refuse pairs that the module does not have.

        Raises:
            ValueError: naming the pair.
        """
        if isinstance(self._wanted, tuple):
            check_twins(pl_module, self._wanted)

    def look(self, trainer: pl.Trainer) -> None:
        """Look for copies, unless that is done; every rank must do so."""
        if self._pairs is None:
            self._pairs = self.pairs(trainer)

    def pairs(self, trainer: pl.Trainer) -> list[Pair]:
        """Names of modules and their copies in the LightningModule; every rank must ask."""
        known = [] if self._pairs is None else self._pairs
        if self._wanted is False:
            return []
        self._warn(trainer)
        if self._wanted != "auto":
            return list(self._wanted)
        module = trainer.lightning_module
        trained = trained_parameters(trainer, module)
        found = twins_within(module, trained) if trained else []
        copies = {copy for _, copy in known}
        for pattern in self._ignore:
            copies |= matching((copy for _, copy in found), pattern)
        together: list[Pair] = [*known, *(pair for pair in found if pair[1] not in copies)]
        return broadcast(trainer, together)

    def followers(self, trainer: pl.Trainer) -> list[Follower]:
        """Copies that are no part of the LightningModule."""
        trained = trained_parameters(trainer, trainer.lightning_module)
        if self._wanted is False or not trained:
            return []
        return followers_outside(trainer, trained)

    def shrink(self, trainer: pl.Trainer, plans: Sequence[PruningPlan]) -> None:
        """Cut followers of a full-size module that is about to be shrunk for a checkpoint."""
        if self._wanted is not False:
            names = [name for name, _ in trainer.lightning_module.named_parameters()]
            for one in followers_outside(trainer, names):
                apply_plans(one.module, [plan.within(one.student) for plan in plans])

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

    def state_dict(self) -> list[list[str]] | None:
        """Return plain data: a resumed fit must search the same channels."""
        return None if self._pairs is None else [list(pair) for pair in self._pairs]

    def load_state_dict(self, state: Sequence[Sequence[str]] | None) -> None:
        """Take up what was found."""
        self._pairs = None if state is None else [(first, copy) for first, copy in state]


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
