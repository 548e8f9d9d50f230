"""Sparse training inside a Lightning fit: when the penalty on γ acts, and when it stops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_slimga.callbacks.sparsity_logging import log_histogram
from lightning_slimga.penalties import Penalty, PenaltyName, ProximalPenalty, make_penalty
from lightning_slimga.scaling_factors import NormName, ScalingFactors


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

    When `GeneticPruneCallback` cuts the network, the penalty stops, unless `until_surgery=False`.

    Logged at the end of each epoch of sparse training: `sparsity/penalty` (R(γ) without λ),
    `sparsity/strength` (λ), `sparsity/near_zero` (share of |γ| below `near_zero`) and, where the
    logger can show one, a histogram `sparsity/gamma`.

    Args:
        strength: λ >= 0, the weight of the penalty. No value is published; 1e-4 is a mild start.
        penalty: A name, or an object with `value(gamma)` and `gradient(gamma)`.
        epsilon: ε of the penalty "l1_2", which bounds its gradient by 1/(2·sqrt(ε)). None: 1e-4.
        proximal: Shrink γ after each step in closed form; for penalties that have a `prox`.
        warmup_epochs: λ rises linearly from 0 over so many epochs (fractions allowed).
        include: Patterns (fnmatch) of the names of the normalisation layers whose γ are chosen.
        ignore: Patterns of the names of normalisation layers to leave out.
        norms: Kinds of affine normalisation layers that are chosen.
        near_zero: A γ smaller than this counts as near zero in what is logged.
        until_surgery: Stop when channels have been removed.
        log: Log penalty, λ and the share near zero at the end of each epoch.
        histogram_every_n_epochs: How often the histogram of γ is logged; 0: never.
        name: Prefix of what is logged; several such callbacks in one Trainer need several names.

    Raises:
        ValueError: If an argument is out of its range, or the penalty unknown.
        TypeError: If the penalty is not one, or `proximal=True` and it has no `prox`.
        MisconfigurationException: From `setup`, if the network has no such γ.
    """

    def __init__(
        self,
        strength: int | float = 1e-4,
        *,
        penalty: PenaltyName | Penalty = "l1_2",
        epsilon: float | None = None,
        proximal: bool = False,
        warmup_epochs: int | float = 0,
        include: Sequence[str] = ("*",),
        ignore: Sequence[str] = (),
        norms: Sequence[NormName] = ("batch", "instance"),
        near_zero: float = 1e-2,
        until_surgery: bool = True,
        log: bool = True,
        histogram_every_n_epochs: int = 1,
        name: str = "sparsity",
    ) -> None:
        self.penalty = make_penalty(penalty, epsilon=epsilon)
        if proximal and not isinstance(self.penalty, ProximalPenalty):
            raise TypeError(
                "Expected argument `penalty` to have a closed-form `prox` when `proximal=True`, "
                f"but got {penalty!r}; use 'l1_2' or 'l1', or `proximal=False`."
            )
        _expect_at_least(0, strength=strength, warmup_epochs=warmup_epochs)
        _expect_at_least(0, near_zero=near_zero, histogram_every_n_epochs=histogram_every_n_epochs)
        self.strength = strength
        self.proximal = proximal
        self.warmup_epochs = warmup_epochs
        self.include, self.ignore, self.norms = include, ignore, norms
        self.near_zero = near_zero
        self.until_surgery = until_surgery
        self.log_metrics = log
        self.histogram_every_n_epochs = histogram_every_n_epochs
        self.name = name

        self.active = True
        self._strength_now = 0.0
        self._factors: ScalingFactors | None = None
        self._handles: list[RemovableHandle] = []
        self._steps = 0
        self._batches = 0
        self._value_at_start: float | None = None
        self._checked = False

    @property
    def state_key(self) -> str:
        """The name tells several such callbacks apart in a checkpoint."""
        return self._generate_state_key(name=self.name)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse a network without γ, unless hooks of its own may build it later."""
        built_later = any(is_overridden(hook, pl_module) for hook in ("setup", "configure_model"))
        if stage == "fit" and not built_later:
            self._find_factors(pl_module)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse a network without γ."""
        self._find_factors(pl_module)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start counting, and put the proximal step behind each optimizer's step."""
        self._factors = None
        self._steps = self._batches = 0
        self._remove_hooks()
        if self.proximal:
            self._handles = [o.register_step_post_hook(self._shrink) for o in trainer.optimizers]

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Look for trainable γ once per epoch, and set λ for this batch."""
        if not self.active:
            return
        self._batches += 1
        self._strength_now = self.strength * self._warmup(trainer, batch_idx)
        if batch_idx == 0 or self._factors is None:
            self._factors = self._find_factors(pl_module, trainable=True)
            full = 0 < self.strength <= self._strength_now
            self._value_at_start = self._value() if full else None

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Add `λ ∂R/∂γ` to the gradients of the γ that this optimizer owns."""
        self._steps += 1
        if self._factors is not None and not self.proximal:
            weight = self._strength_now * _gradient_scale(trainer, optimizer)
            self._factors.add_gradient(self.penalty, weight, optimizer)

    def _shrink(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        # A fused optimizer under AMP skips a step with infinite gradients inside its kernel.
        skipped = bool(getattr(optimizer, "found_inf", False))
        if self._factors is not None and not skipped:
            assert isinstance(self.penalty, ProximalPenalty)
            self._factors.shrink(self.penalty, self._strength_now, optimizer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log, and warn once if a whole epoch of penalty has not moved γ."""
        if self._factors is None or not len(self._factors):
            return
        gamma, value = self._factors.flat(), self._value()
        self._warn_if_unmoved(trainer, value)
        if self.log_metrics:
            metrics = {
                f"{self.name}/penalty": value,
                f"{self.name}/strength": float(self._strength_now),
                f"{self.name}/near_zero": float((gamma.abs() < self.near_zero).float().mean()),
            }
            # Equal on all ranks; Lightning asks for sync_dist where it sees several.
            self.log_dict(metrics, sync_dist=True)  # type: ignore[attr-defined]
        every = self.histogram_every_n_epochs
        if every and (trainer.current_epoch + 1) % every == 0:
            log_histogram(trainer, f"{self.name}/gamma", gamma)

    def on_surgery(self, trainer: pl.Trainer, pl_module: pl.LightningModule, plan: Any) -> None:
        """Stop when channels have been removed; `GeneticPruneCallback` calls this."""
        if self.until_surgery:
            self.stop("channels have been removed")

    def stop(self, reason: str) -> None:
        """End sparse training: from here on the network trains on its loss alone."""
        if self.active:
            rank_zero_info(f"{type(self).__name__}: the penalty on γ stops, because {reason}.")
        self.active = False
        self._factors = None

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Warn if the penalty could not act at all."""
        if self._batches and not self._steps and not self.proximal:
            rank_zero_warn(
                f"{type(self).__name__} saw {self._batches} training batches but no optimizer "
                "step: the penalty never acted. Under manual optimization step the optimizers of "
                "`self.optimizers()`, not the raw torch ones, or use `proximal=True`."
            )

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave nothing behind on the optimizers."""
        self._remove_hooks()
        self._factors = None

    def state_dict(self) -> dict[str, Any]:
        """Return whether sparse training still runs."""
        return {"active": self.active}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.active = state_dict["active"]

    def _find_factors(
        self, pl_module: pl.LightningModule, *, trainable: bool = False
    ) -> ScalingFactors:
        factors = ScalingFactors(
            pl_module,
            include=self.include,
            ignore=self.ignore,
            norms=self.norms,
            trainable=trainable,
        )
        if not len(factors) and not trainable:
            raise MisconfigurationException(
                f"{type(self).__name__} expected {type(pl_module).__name__} to have scaling "
                f"factors γ (weights of affine layers of the kinds {list(self.norms)}), but found "
                "none. Put normalisation layers behind the convolutions, choose others with "
                "`norms`, `include` and `ignore`, or leave this callback out: GeneticPruneCallback "
                "alone works there, its evaluation factor falls back to the norm of the slices."
            )
        return factors

    def _value(self) -> float:
        assert self._factors is not None
        return float(self.penalty.value(self._factors.flat()))

    def _warmup(self, trainer: pl.Trainer, batch_idx: int) -> float:
        if not self.warmup_epochs:
            return 1.0
        return min(1.0, epochs_done(trainer, batch_idx) / self.warmup_epochs)

    def _warn_if_unmoved(self, trainer: pl.Trainer, value: float) -> None:
        tried = trainer.fast_dev_run  # type: ignore[attr-defined]
        if self._checked or tried or self._value_at_start is None:
            return
        self._checked = True
        if value >= self._value_at_start:
            rank_zero_warn(
                f"{type(self).__name__}: γ has not moved toward zero in epoch "
                f"{trainer.current_epoch}: the penalty R(γ) went from {self._value_at_start:.6g} "
                f"to {value:.6g}. λ = {self._strength_now:g} is too small for this loss, γ is "
                "in no optimizer, or the learning rate is still rising. Try a larger `strength`."
            )

    def _remove_hooks(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []


def epochs_done(trainer: pl.Trainer, batch_idx: int) -> float:
    """Return how many epochs lie behind this batch; an epoch of unknown length counts at once."""
    batches = trainer.num_training_batches
    return trainer.current_epoch + (batch_idx / batches if batches != float("inf") else 1.0)


def _gradient_scale(trainer: pl.Trainer, optimizer: Optimizer) -> float:
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    # Lightning unscales before our hook, except where the optimizer does it inside its step.
    if scaler is None or not getattr(optimizer, "_step_supports_amp_scaling", False):
        return 1.0
    return float(scaler.get_scale())


def _expect_at_least(minimum: float, **arguments: float) -> None:
    for name, value in arguments.items():
        if not value >= minimum:
            raise ValueError(
                f"Expected argument `{name}` to be a number >= {minimum}, but got {value}."
            )
