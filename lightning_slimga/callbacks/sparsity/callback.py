"""Sparse training inside a Lightning fit: when the penalty on γ acts, and when it stops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_slimga.arguments import as_called
from lightning_slimga.callbacks.sparsity.advice import advised_strength
from lightning_slimga.callbacks.sparsity.logging import log_histogram, warn_no_steps, warn_unmoved
from lightning_slimga.callbacks.sparsity.pull import Coupling, Pull
from lightning_slimga.callbacks.sparsity.settings import (
    check_factors,
    checked_arguments,
    steps_proximally,
)
from lightning_slimga.callbacks.sparsity.strength import make_schedule, prune_epochs
from lightning_slimga.sparsity.penalties import Penalty, PenaltyName, make_penalty
from lightning_slimga.sparsity.scaling_factors import NormName, ScalingFactors

_PROTECTED_BELOW = 10.0
"""In units of `near_zero`: down to which "auto" pulls at γ that are not to go."""


class SparsityCallback(pl.Callback):
    """Pulls the scaling factors γ of normalisation layers toward zero while the network trains.

    Sparse training as in `f_new = f_old + λ R(γ)`. The loss that you log stays your own: the
    analytic sub-gradient `λ ∂R/∂γ` is added to the gradients once per optimizer step, after AMP has
    unscaled them and before they are clipped, which equals writing the penalty into the loss. That
    holds under automatic and manual optimization, gradient accumulation, clipping, AMP and for
    several optimizers: each γ is treated by the optimizer that owns it. λ competes with the
    gradient of the loss: it need not follow the learning rate, but the scale of your loss.

    With `proximal=True` γ is instead replaced by `prox(γ, lr·λ)` right after each step, with the
    learning rate of its parameter group. That is independent of the loss and of Adam's second
    moments (as weight decay is in AdamW) and leaves exact zeros.

    With `strength="auto"` λ is steered so that `target_share` of γ is near zero when channels are
    removed (see `SteeredStrength` for the rule). No λ empties a layer: the penalty carries neither
    the largest γ of each layer, half of what an even cut would leave, nor any beyond `target_share`
    below `10 · near_zero` (see `ProtectingPenalty`). Once the share is reached, only the smallest
    γ are penalised. λ is bounded; where a fit is too short for the share, it is missed, with a
    warning.

    When `GeneticPruneCallback` has cut the network for the last time, the penalty stops, unless
    `until_surgery=False`.

    Logged at the end of each epoch of sparse training: `sparsity/penalty` (R(γ) without λ),
    `sparsity/strength` (λ), `sparsity/near_zero` (share of |γ| below `near_zero`) and, where the
    logger can show one, a histogram `sparsity/gamma`.

    Args:
        strength: λ >= 0, the weight of the penalty, or "auto". No value is published; 1e-4 is mild.
        penalty: A name, or an object with `value(gamma)` and `gradient(gamma)`.
        epsilon: ε of the penalty "l1_2", which bounds its gradient by 1/(2·sqrt(ε)). None: 1e-4.
        proximal: Shrink γ after each step in closed form, for penalties that have a `prox`. None:
            with "auto" where that is possible, because a gradient step shakes γ around zero.
        coupled: Penalise the norm of the γ that the network ties together (by residual additions,
            say) in place of each |γ|, so that channels go as a whole.
        warmup_epochs: λ rises linearly from 0 over so many epochs (fractions allowed); with "auto"
            there is no penalty during them.
        target_share: Share of γ, between 0 and 1, that "auto" brings near zero.
        target_epoch: Complete epochs after which "auto" has done so; None: at each pruning of
            `GeneticPruneCallback`, or at the end of the fit.
        include: Patterns (fnmatch) of module names whose γ are chosen; a name stands for its
            submodules, too.
        ignore: Patterns of module names whose γ are left out, as for `GeneticPruneCallback`: a
            module that holds no normalisation layer may be among them.
        norms: Kinds of affine normalisation layers that are chosen.
        near_zero: A γ smaller than this counts as near zero.
        until_surgery: Stop when channels have been removed, and no further pruning is planned.
        log: Log penalty, λ and the share near zero at the end of each epoch.
        histogram_every_n_epochs: How often the histogram of γ is logged; 0: never.
        name: Prefix of what is logged; several such callbacks in one Trainer need several names.

    Raises:
        ValueError: If an argument is not what it may be, or the penalty unknown; from `setup`, if
            a pattern matches no module.
        TypeError: If the penalty is not one, or `proximal=True` and it has no `prox`.
        MisconfigurationException: From `setup`, if the network has no such γ, or the fit ends
            before `target_epoch`.

    Examples:
        >>> SparsityCallback("auto", target_share=0.6, ignore="head")
        SparsityCallback(strength='auto', target_share=0.6, ignore=('head',))
    """

    def __init__(
        self,
        strength: int | float | Literal["auto"] = 1e-4,
        *,
        penalty: PenaltyName | Penalty = "l1_2",
        epsilon: float | None = None,
        proximal: bool | None = None,
        coupled: bool = False,
        warmup_epochs: int | float = 0,
        target_share: float = 0.5,
        target_epoch: int | None = None,
        include: Sequence[str] = ("*",),
        ignore: Sequence[str] = (),
        norms: Sequence[NormName] = ("batch", "instance"),
        near_zero: float = 1e-2,
        until_surgery: bool = True,
        log: bool = True,
        histogram_every_n_epochs: int = 1,
        name: str = "sparsity",
    ) -> None:
        given = checked_arguments(
            strength=strength,
            proximal=proximal,
            coupled=coupled,
            warmup_epochs=warmup_epochs,
            target_share=target_share,
            target_epoch=target_epoch,
            include=include,
            ignore=ignore,
            norms=norms,
            near_zero=near_zero,
            until_surgery=until_surgery,
            log=log,
            histogram_every_n_epochs=histogram_every_n_epochs,
            name=name,
        )
        self._given = {**given, "penalty": penalty, "epsilon": epsilon}
        self.penalty = make_penalty(penalty, epsilon=epsilon)
        self.strength, self.warmup_epochs = given["strength"], given["warmup_epochs"]
        self.near_zero, steered = given["near_zero"], given["strength"] == "auto"
        self.proximal = steps_proximally(given["proximal"], self.penalty, penalty, steered=steered)
        self._schedule = make_schedule(given, proximal=self.proximal)
        self.coupling = Coupling() if given["coupled"] else None
        self._choice = {name: given[name] for name in ("include", "ignore", "norms")}
        self.protect_below = _PROTECTED_BELOW * self.near_zero if steered else 0.0
        self.until_surgery, self.log_metrics = given["until_surgery"], given["log"]
        self.histogram_every_n_epochs = given["histogram_every_n_epochs"]
        self.name = given["name"]

        self.active = True
        self._removed = False
        self._pull: Pull | None = None
        self._handles: list[RemovableHandle] = []
        self._steps = self._batches = 0
        self._value_at_start: float | None = None
        self._size_at_start, self._steps_at_start = 0.0, 0
        self._checked, self._share = False, 0.0

    def __repr__(self) -> str:
        return as_called(self, self._given)

    @property
    def state_key(self) -> str:
        """The name tells several such callbacks apart in a checkpoint."""
        return self._generate_state_key(name=self.name)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse a goal behind the end, and a network without γ unless it may be built later."""
        if stage != "fit":
            return
        self._schedule.check(trainer)
        # The parent of the live object: the `pytorch_lightning` package has a class of its own.
        parent = next(c for c in type(pl_module).__mro__ if c.__name__ == "LightningModule")
        hooks = ("setup", "configure_model")
        if not any(is_overridden(hook, pl_module, parent=parent) for hook in hooks):
            check_factors(pl_module, self._choice)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse a network without γ."""
        check_factors(pl_module, self._choice)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start counting, and put the proximal step behind each optimizer's step."""
        self._pull = None
        self._steps = self._batches = 0
        self._remove_hooks()
        if self.active:
            self._schedule.start(trainer)
        if self.proximal or self.protect_below:
            self._handles = [o.register_step_post_hook(self._stepped) for o in trainer.optimizers]

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Look for trainable γ once per epoch, and set λ for this batch."""
        if batch_idx == 0 and self._removed and self._is_last(trainer):
            self.stop("the last pruning is reached")
        if not self.active:
            return
        self._batches += 1
        started = batch_idx == 0 or self._pull is None
        if started:
            self._pull = self._find_pull(trainer, pl_module)
        assert self._pull is not None
        self._schedule.advance(trainer, batch_idx, self._pull)
        if started:
            self._value_at_start = self._pull.value() if self._schedule.must_move else None
            self._size_at_start, self._steps_at_start = self._pull.mean_size(), self._steps

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Add `λ ∂R/∂γ` to the gradients of the γ that this optimizer owns."""
        self._steps += 1
        if self._pull is not None and not self.proximal:
            self._pull.add_gradient(trainer, self._schedule.now, optimizer)

    def _stepped(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._pull is not None and self.proximal:
            self._pull.shrink(self._schedule.now, optimizer)
        elif self._pull is not None:
            self._pull.hold_up(optimizer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log, and warn once if a whole epoch of penalty has not moved γ."""
        if not self._pull:
            return
        value, self._share = self._pull.value(), self._pull.share_below(self.near_zero)
        self._warn_if_unmoved(trainer, value)
        if self.log_metrics:
            metrics = {
                f"{self.name}/penalty": value,
                f"{self.name}/strength": float(self._schedule.now),
                f"{self.name}/near_zero": self._share,
            }
            # Equal on all ranks; Lightning asks for sync_dist where it sees several.
            self.log_dict(metrics, sync_dist=True)  # type: ignore[attr-defined]
        every = self.histogram_every_n_epochs
        if every and (trainer.current_epoch + 1) % every == 0:
            log_histogram(trainer, f"{self.name}/gamma", self._pull.factors.flat())

    def on_surgery(self, trainer: pl.Trainer, pl_module: pl.LightningModule, plan: Any) -> None:
        """Stop when channels have been removed; `GeneticPruneCallback` calls this.

        With further rounds to come the pull goes on, at the γ that are left.
        """
        if self._is_last(trainer):
            self.stop("channels have been removed")
        elif self.active:
            self._removed = True
            self._schedule.finish(self._share, "Channels were removed")
            self._schedule.begin_anew()
            if self._pull is not None:
                self._pull = self._find_pull(trainer, pl_module)

    def _is_last(self, trainer: pl.Trainer) -> bool:
        """Whether the penalty is to end with this pruning, or after it if that cuts nothing."""
        later = [epoch for epoch in prune_epochs(trainer) if epoch > trainer.current_epoch]
        return self.until_surgery and not later

    def stop(self, reason: str) -> None:
        """End sparse training: from here on the network trains on its loss alone."""
        if self.active:
            rank_zero_info(f"{type(self).__name__}: the penalty on γ stops, because {reason}.")
            self._schedule.finish(self._share, "Sparse training ended")
        self.active = False
        self._pull = None

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Warn if the penalty could not act at all, or has missed its goal."""
        if self._batches and not self._steps and not self.proximal:
            warn_no_steps(self._batches)
        elif self._pull and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._schedule.finish(self._share, "Sparse training ended")

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave nothing behind on the optimizers."""
        self._remove_hooks()
        self._pull = None

    def state_dict(self) -> dict[str, Any]:
        """Return whether sparse training still runs, and how strongly: plain data."""
        return {
            "active": self.active,
            "removed": self._removed,
            "share": self._share,
            "strength": self._schedule.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.active, self._share = state_dict["active"], state_dict["share"]
        self._removed = state_dict["removed"]
        self._schedule.load_state_dict(state_dict["strength"])

    def _find_pull(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Pull:
        factors = ScalingFactors(pl_module, **self._choice, trainable=True)
        channel = self.coupling.find(trainer, pl_module, factors) if self.coupling else None
        return Pull(factors, self.penalty, channel=channel, protect_below=self.protect_below)

    def _warn_if_unmoved(self, trainer: pl.Trainer, value: float) -> None:
        tried = trainer.fast_dev_run  # type: ignore[attr-defined]
        if self._checked or tried or self._value_at_start is None:
            return
        self._checked = True
        if value >= self._value_at_start:
            assert self._pull is not None
            advised = advised_strength(
                trainer,
                self._pull,
                self._schedule.now,
                before=self._size_at_start,
                steps=self._steps - self._steps_at_start,
                proximal=self.proximal,
            )
            warn_unmoved(
                trainer.current_epoch, self._schedule.now, self._value_at_start, value, advised
            )

    def _remove_hooks(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
