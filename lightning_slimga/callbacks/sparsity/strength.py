"""How strong the penalty is at each batch: a fixed λ, or one that finds itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_slimga.callbacks.sparsity.pull import Pull
from lightning_slimga.sparsity.protected import smallest

_OVERSHOT = (
    "The penalty carries no more than that: the others were near zero from the start, or the loss "
    "and weight decay have shrunk them. Leave γ out of weight decay, lower `near_zero` or the "
    "learning rate, or raise `target_share`."
)
_UNDERSHOT = (
    "It may have ended early, or γ cannot travel so far in so few steps, or the layers cannot "
    "spare so many: give it more epochs or a higher learning rate, or lower `target_share`, and "
    "leave `proximal` at None, because a gradient step shakes γ around zero."
)


class FixedStrength:
    """One λ, after an optional linear warm-up.

    Args:
        strength: λ >= 0.
        warmup_epochs: Epochs over which λ rises from 0.

    Attributes:
        now: λ of the batch that `advance` was last told of.
    """

    def __init__(self, strength: float, warmup_epochs: float) -> None:
        self.strength, self.warmup_epochs = strength, warmup_epochs
        self.now = 0.0

    def check(self, trainer: pl.Trainer) -> None:
        """Refuse nothing: there is no goal to miss."""

    def start(self, trainer: pl.Trainer) -> None:
        """Nothing to prepare."""

    def advance(self, trainer: pl.Trainer, batch_idx: int, pull: Pull) -> None:
        """Go on to a batch."""
        way = epochs_done(trainer, batch_idx)
        self.now = self.strength * (min(1.0, way / self.warmup_epochs) if self.warmup_epochs else 1)

    @property
    def must_move(self) -> bool:
        """Whether γ must shrink within an epoch that begins with the λ of now."""
        return 0 < self.strength <= self.now

    def finish(self, share: float, what: str) -> None:
        """No goal was set."""

    def begin_anew(self) -> None:
        """Nothing was measured."""

    def state_dict(self) -> dict[str, float]:
        """Return nothing: λ is an argument."""
        return {}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore nothing."""


@dataclass
class _Found:
    """What was found out about the γ on the way to one goal.

    Attributes:
        share: Share of γ that is still to end near zero.
        progress: Part of the way at the last look.
        quantile: Size that `share` of γ did not exceed then.
        arrived: Whether the share is only to be held.
        limited: Whether λ was bounded by what γ can stand.
        largest: Largest size that the quantile had.
        room: How far one step may carry γ, in units of the learning rate times λ.
    """

    share: float
    progress: float = -math.inf
    quantile: float = math.nan
    arrived: bool = False
    limited: bool = False
    largest: float = 0.0
    room: float = math.inf


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
        near_zero: |γ| > 0 below which a γ counts as near zero.
        warmup_epochs: Epochs without penalty before the way begins.
        target_epoch: Complete epochs after which the share is to be reached, and held; None: at
            each pruning of a callback with `prune_epoch` or `prune_epochs`, else `max_epochs`.
        proximal: Whether γ follows the penalty in proximal steps, and not through the optimizer.

    Attributes:
        strength: λ as it is steered.
        now: λ of the batch that `advance` was last told of: bounded, and 0 where nothing is pulled.
        must_move: False: γ may rise until λ is found, and `finish` judges the end.
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
        self.target_share, self.near_zero, self.proximal = target_share, near_zero, proximal
        self.warmup_epochs, self.target_epoch = warmup_epochs, target_epoch
        self.strength, self.now = self.START, 0.0
        self._goals: list[float] = []
        self._goal = math.nan
        self._found = _Found(target_share)

    must_move = False

    @property
    def share(self) -> float:
        """Share of γ that is still to end near zero: less than `target_share` if given up."""
        return self._found.share

    @property
    def arrived(self) -> bool:
        """Whether the share is only to be held from here."""
        return self._found.arrived

    def check(self, trainer: pl.Trainer) -> None:
        """Refuse a goal behind the end of the fit.

        Raises:
            MisconfigurationException: If the fit ends before `target_epoch` is complete.
        """
        epoch, last = self.target_epoch, trainer.max_epochs
        tried = trainer.fast_dev_run  # type: ignore[attr-defined]  # it reaches no goal
        if epoch is not None and last is not None and 0 <= last < epoch and not tried:
            raise MisconfigurationException(
                f"Expected argument `target_epoch` to be at most `max_epochs`, {last}, but got "
                f"{epoch}: the share would never be reached. Lower `target_epoch`, leave it at "
                "None (the next pruning, or the end of the fit), or raise `max_epochs`."
            )

    def start(self, trainer: pl.Trainer) -> None:
        """Find the epochs at which the share is to be reached.

        Raises:
            MisconfigurationException: If there is none, it leaves no time, or the number of
                batches is unknown.
        """
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

    def advance(self, trainer: pl.Trainer, batch_idx: int, pull: Pull) -> None:
        """Go on to a batch, with another look at its γ where one is due."""
        start, goal = self.way(trainer.current_epoch)
        if goal != self._goal:
            self.begin_anew()
            self._goal = goal
        progress = (epochs_done(trainer, batch_idx) - start) / (goal - start)
        if progress < 0:
            self.now = 0.0
            return
        if not pull:
            self.now = self.strength
            return
        reach = pull.reach(trainer.optimizers, proximal=self.proximal)
        if progress >= self._found.progress + self.EVERY:
            if progress >= self.LATEST:
                self._give_up(pull.share_below(self.near_zero))
            self.look(progress, pull.sizes_to_go())
            steps = (goal - start) * trainer.num_training_batches / trainer.accumulate_grad_batches
            self._bound(pull, steps)
            self._found.limited = self.strength > self._limit(reach)
            self.strength = min(self.strength, self._limit(reach))
        pull.protect(self._found.share, only=self._found.arrived)
        self.now = min(self.strength, self._limit(reach)) if self._found.share else 0.0

    def _give_up(self, share: float) -> None:
        """Be content with the share that is reached, if too much is missing."""
        found = self._found
        if share < found.share == self.target_share and share < found.share - self.TOLERANCE:
            found.share = share

    def _bound(self, pull: Pull, steps: float) -> None:
        found = self._found
        found.largest = max(found.largest, found.quantile, pull.protect_below)
        # A gradient step shakes γ around zero the harder, the steeper the penalty is there.
        size = found.largest if self.proximal else max(found.quantile, self.near_zero)
        slope = pull.slope(size)
        stride = found.largest / (self.STEPS if steps >= self.BRIEF else self.BRIEF)
        found.room = stride / slope if slope > 0 else math.inf

    def _limit(self, reach: float) -> float:
        return self._found.room / reach if reach > 0 else self.strength

    def way(self, epoch: int) -> tuple[float, float]:
        """Return where the way through an epoch begins and ends; the last one goes on."""
        last = len(self._goals) - 1
        end = next((i for i in range(1, last) if self._goals[i] > epoch), last)
        return self._goals[end - 1], self._goals[end]

    def look(self, progress: float, magnitudes: Tensor) -> None:
        """Measure, and change λ.

        Args:
            progress: Part of the way that is over, >= 0; above 1 the share is held.
            magnitudes: |γ|, shape `(num_factors,)`, not empty.
        """
        found = self._found
        quantile = float(smallest(magnitudes, found.share))
        found.arrived = found.arrived or quantile < self.near_zero or progress >= self.REACH
        if math.isfinite(found.progress):
            needed = (quantile - self.near_zero / 2) / max(self.REACH - progress, 0.05)
            speed = (found.quantile - quantile) / (progress - found.progress)
            self.strength *= self._change(needed, speed)
        found.progress, found.quantile = progress, quantile

    def _change(self, needed: float, speed: float) -> float:
        if needed <= 0:  # there: let go a little, but less quickly than we pull back
            return self.RELEASE
        if speed <= 0:  # the wrong way
            return self.FACTOR
        return min(max(needed / speed, 1 / self.FACTOR), self.FACTOR)

    def begin_anew(self) -> None:
        """Forget what was measured: these γ are no longer there. λ stays."""
        self._found = _Found(self.target_share)

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
        held = "λ was held back, because more would harm the network. "
        return (held if self._found.limited else "") + _UNDERSHOT

    def state_dict(self) -> dict[str, float]:
        """Return λ and the last look, plain numbers."""
        return {"strength": self.strength, "goal": self._goal, **asdict(self._found)}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore what `state_dict` returned."""
        found: dict[str, Any] = dict(state)
        self.strength, self._goal = found.pop("strength"), found.pop("goal")
        self._found = _Found(**found)


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


def epochs_done(trainer: pl.Trainer, batch_idx: int) -> float:
    """Return how many epochs lie behind this batch; an epoch of unknown length counts at once."""
    batches = trainer.num_training_batches
    return trainer.current_epoch + (1.0 if math.isinf(batches) else batch_idx / batches)


def prune_epochs(trainer: pl.Trainer) -> list[int]:
    """Return the epochs, rising, before which callbacks of a Trainer remove channels.

    Known by what they offer, not by class, so that any callback that prunes can be followed.
    """
    epochs: list[Any] = []
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        epochs += [getattr(callback, "prune_epoch", None)]
        epochs += list(getattr(callback, "prune_epochs", None) or [])
    return sorted({epoch for epoch in epochs if isinstance(epoch, int)})
