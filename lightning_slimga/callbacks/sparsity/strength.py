"""How strong the penalty is at each batch: a fixed λ, or one that finds itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_slimga.arguments import expect
from lightning_slimga.callbacks.sparsity.goal import epochs_done, prune_epochs, refuse_beyond
from lightning_slimga.callbacks.sparsity.pull import Pull
from lightning_slimga.sparsity.protected import smallest

_OVERSHOT = (
    "The penalty carries no more than that: the others were near zero from the start, or the loss "
    "and weight decay have shrunk them. Leave γ out of weight decay, lower `near_zero` or the "
    "learning rate, or raise `target_share`."
)


class FixedStrength:
    """One λ, after an optional linear warm-up.

    Args:
        strength: λ >= 0.
        warmup_epochs: Epochs over which λ rises from 0.
    """

    def __init__(self, strength: float, warmup_epochs: float) -> None:
        self.strength, self.warmup_epochs = strength, warmup_epochs

    def start(self, trainer: pl.Trainer) -> None:
        """Nothing to prepare."""

    def at(self, trainer: pl.Trainer, batch_idx: int, pull: Pull) -> float:
        """Return λ for this batch."""
        if not self.warmup_epochs:
            return self.strength
        return self.strength * min(1.0, epochs_done(trainer, batch_idx) / self.warmup_epochs)

    def must_move(self, strength: float) -> bool:
        """Return whether γ must shrink within an epoch that begins with this λ."""
        return 0 < self.strength <= strength

    def finish(self, share: float, what: str) -> None:
        """No goal was set."""

    def begin_anew(self) -> None:
        """Nothing was measured."""

    def state_dict(self) -> dict[str, float]:
        """Return nothing: λ is an argument."""
        return {}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore nothing."""


class SteeredStrength:
    """Steers λ so that the smallest `target_share` of |γ| has shrunk below `near_zero` in time.

    What is steered is not the share itself, which stays 0 for most of the way and then leaps, but
    the quantile q of |γ| at `target_share`: the share is reached when q is near zero. With progress
    p in [0, 1], q is to fall steadily to `near_zero / 2` at p = `REACH` = 1/2, and to stay there
    while the network recovers, mostly at lower learning rates. Every `EVERY` of the way the speed
    that is needed from here, `(q − near_zero / 2) / (REACH − p)`, is compared with the speed since
    the last look, and λ is multiplied by their ratio, within `FACTOR` and `1 / FACTOR`. That finds
    λ within a tenth of the way from any start, follows learning-rate schedules, and needs to know
    neither the optimizer nor the loss. Once q is near zero, or p = `REACH`, the goal is to hold the
    share: only the smallest `target_share` of γ is penalised from there, and the others are free.
    The rule is ours.

    λ is bounded by what γ can stand: at the size that q had at its largest, one step with the
    learning rate of now moves γ by at most `1 / STEPS` of it. A way of fewer than `BRIEF` steps
    leaves a network no time to choose which γ go, nor to recover; there it is `1 / BRIEF`, which
    carries γ not all the way, and the share is rather missed than reached by force. If at
    p = `LATEST` more than `TOLERANCE` of γ are missing, no more are pulled than are near zero by
    then, so that the others recover.

    Where channels are removed in several rounds, the way is gone again from each to the next: of
    the γ that are left, `target_share` are to be near zero by then.

    Args:
        target_share: Share of γ in (0, 1) that is to end near zero.
        near_zero: |γ| below which a γ counts as near zero.
        warmup_epochs: Epochs without penalty before the way begins.
        target_epoch: Complete epochs after which the share is to be reached, and held; None: at
            each pruning of a callback with `prune_epoch` or `prune_epochs`, else `max_epochs`.
        proximal: Whether γ follows the penalty in proximal steps, and not through the optimizer.
    """

    REACH = 0.5
    EVERY = 0.01
    FACTOR = 2.0
    RELEASE = 0.9
    START = 1e-4
    TOLERANCE = 0.05
    STEPS = 10
    BRIEF = 200
    LATEST = 0.75

    def __init__(
        self,
        target_share: float,
        near_zero: float,
        warmup_epochs: float,
        target_epoch: int | None,
        *,
        proximal: bool = True,
    ) -> None:
        expect(near_zero > 0, "near_zero", 'positive with `strength="auto"`', near_zero)
        self.target_share, self.near_zero, self.proximal = target_share, near_zero, proximal
        self.warmup_epochs, self.target_epoch = warmup_epochs, target_epoch
        self.strength = self.START
        self._goals: list[float] = []
        self._goal = math.nan
        self.arrived = self.limited = False
        self._progress, self._quantile = -math.inf, math.nan
        self._largest, self._room = 0.0, math.inf
        self._share = target_share

    def start(self, trainer: pl.Trainer) -> None:
        """Find the epochs at which the share is to be reached.

        Raises:
            MisconfigurationException: If there is none, it leaves no time or lies behind the end
                of the fit, or the number of batches is unknown.
        """
        refuse_beyond(self.target_epoch, trainer)
        goals = prune_epochs(trainer) if self.target_epoch is None else [self.target_epoch]
        self._goals = [self.warmup_epochs, *(goals or [trainer.max_epochs or -1])]
        epoch = self._goals[1]
        if not epoch > self.warmup_epochs or math.isinf(trainer.num_training_batches):
            raise MisconfigurationException(
                '`strength="auto"` expected a known number of batches per epoch and argument '
                f"`target_epoch` (or `max_epochs`) to be above `warmup_epochs`, but got {epoch} "
                f"epochs, {self.warmup_epochs} of warm-up and {trainer.num_training_batches} "
                "batches. Set `target_epoch` or `limit_train_batches`, or give a fixed `strength`."
            )

    def at(self, trainer: pl.Trainer, batch_idx: int, pull: Pull) -> float:
        """Return λ for this batch, after another look where one is due."""
        start, goal = self._way(trainer.current_epoch)
        if goal != self._goal:
            self.begin_anew()
            self._goal = goal
        progress = (epochs_done(trainer, batch_idx) - start) / (goal - start)
        if progress < 0:
            return 0.0
        if not pull:
            return self.strength
        reach = pull.reach(trainer.optimizers, proximal=self.proximal)
        if progress >= self._progress + self.EVERY:
            if progress >= self.LATEST:
                self._give_up(pull.share_below(self.near_zero))
            self.look(progress, pull.sizes_to_go())
            steps = (goal - start) * trainer.num_training_batches / trainer.accumulate_grad_batches
            self._bound(pull, steps)
            self.limited = self.strength > self._limit(reach)
            self.strength = min(self.strength, self._limit(reach))
        if pull.sparing is not None:
            pull.sparing.share, pull.sparing.only = self._share, self.arrived
        return min(self.strength, self._limit(reach)) if self._share else 0.0

    def _give_up(self, share: float) -> None:
        """Be content with the share that is reached, if too much is missing."""
        if share < self._share == self.target_share and share < self._share - self.TOLERANCE:
            self._share = share

    def _bound(self, pull: Pull, steps: float) -> None:
        """Find how far one step may carry γ, in units of the learning rate times λ."""
        self._largest = max(self._largest, self._quantile, pull.spare_below)
        # A gradient step shakes γ around zero the harder, the steeper the penalty is there.
        size = self._largest if self.proximal else max(self._quantile, self.near_zero)
        slope = pull.slope(size)
        stride = self._largest / (self.STEPS if steps >= self.BRIEF else self.BRIEF)
        self._room = stride / slope if slope > 0 else math.inf

    def _limit(self, reach: float) -> float:
        return self._room / reach if reach > 0 else self.strength

    def _way(self, epoch: int) -> tuple[float, float]:
        """Where the way that leads through an epoch begins and ends; the last has no end."""
        last = len(self._goals) - 1
        end = next((i for i in range(1, last) if self._goals[i] > epoch), last)
        return self._goals[end - 1], self._goals[end]

    def look(self, progress: float, magnitudes: Tensor) -> None:
        """Measure, and change λ.

        Args:
            progress: Part of the way that is over, >= 0; above 1 the share is held.
            magnitudes: |γ|, shape `(num_factors,)`, not empty.
        """
        quantile = float(smallest(magnitudes, self._share))
        self.arrived = self.arrived or quantile < self.near_zero or progress >= self.REACH
        if math.isfinite(self._progress):
            needed = (quantile - self.near_zero / 2) / max(self.REACH - progress, 0.05)
            speed = (self._quantile - quantile) / (progress - self._progress)
            self.strength *= self._change(needed, speed)
        self._progress, self._quantile = progress, quantile

    def _change(self, needed: float, speed: float) -> float:
        if needed <= 0:  # there: let go a little, but less quickly than we pull back
            return self.RELEASE
        if speed <= 0:  # the wrong way
            return self.FACTOR
        return min(max(needed / speed, 1 / self.FACTOR), self.FACTOR)

    def must_move(self, strength: float) -> bool:
        """Return False: γ may rise until λ is found, and `finish` judges the end."""
        return False

    def begin_anew(self) -> None:
        """Forget what was measured: these γ are no longer there. λ stays."""
        self.arrived = self.limited = False
        self._progress, self._quantile = -math.inf, math.nan
        self._largest, self._room = 0.0, math.inf
        self._share = self.target_share

    def finish(self, share: float, what: str) -> None:
        """Warn if the share was missed.

        Args:
            share: Share of γ near zero at the end of the way.
            what: What has ended it, in words.
        """
        if abs(share - self.target_share) > self.TOLERANCE:
            rank_zero_warn(
                f"{what} with {share:.0%} of γ below {self.near_zero:g}; wanted "
                f"were {self.target_share:.0%} (λ = {self.strength:.2g}). "
                + (_OVERSHOT if share > self.target_share else self._undershot())
            )

    def _undershot(self) -> str:
        held = "λ was held back, because more would harm the network. " if self.limited else ""
        return (
            f"{held}It may have ended early, or γ cannot travel so far in so few steps, or the "
            "layers cannot spare so many: give it more epochs or a higher learning rate, or lower "
            "`target_share`, and leave `proximal` at None, because a gradient step shakes γ around "
            "zero."
        )

    def state_dict(self) -> dict[str, float]:
        """Return λ and the last look, plain numbers."""
        return {
            "strength": self.strength,
            "progress": self._progress,
            "quantile": self._quantile,
            "goal": self._goal,
            "arrived": self.arrived,
            "limited": self.limited,
            "largest": self._largest,
            "room": self._room,
            "share": self._share,
        }

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore what `state_dict` returned."""
        self.strength = state["strength"]
        self._progress, self._quantile = state["progress"], state["quantile"]
        self._goal = state["goal"]
        self.arrived, self.limited = bool(state["arrived"]), bool(state["limited"])
        self._largest, self._room = state["largest"], state["room"]
        self._share = state["share"]


def make_schedule(given: Mapping[str, Any], *, proximal: bool) -> FixedStrength | SteeredStrength:
    """Return what says how large λ is.

    Args:
        given: the checked arguments of the callback.
        proximal: as for `SteeredStrength`.
    """
    if given["strength"] != "auto":
        return FixedStrength(given["strength"], given["warmup_epochs"])
    names = ("target_share", "near_zero", "warmup_epochs", "target_epoch")
    return SteeredStrength(**{name: given[name] for name in names}, proximal=proximal)
