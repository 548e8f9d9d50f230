"""What pulls at which γ of the network as it is now; built anew each epoch and after surgery."""

from __future__ import annotations

from collections.abc import Sequence

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_slimga.callbacks.internals import capture_calls, training_batches
from lightning_slimga.callbacks.internals.quiet import traceless
from lightning_slimga.running.calls import FEW_SAMPLES, examples_of
from lightning_slimga.sparsity.coupling import coupled_channels
from lightning_slimga.sparsity.penalties import Coupled, Penalty, ProximalPenalty
from lightning_slimga.sparsity.protected import ProtectingPenalty
from lightning_slimga.sparsity.scaling_factors import ScalingFactors
from lightning_slimga.surgery.channel_surgery import ChannelSurgery


class Pull:
    """A penalty together with the γ it acts on.

    Args:
        factors: The γ.
        penalty: The penalty of single γ.
        channel: The channel of each γ, to penalise the norm of each channel instead; or None.
        protect_below: Size below which the largest γ of a layer are not pulled; 0 protects none.
    """

    def __init__(
        self,
        factors: ScalingFactors,
        penalty: Penalty,
        *,
        channel: Tensor | None = None,
        protect_below: float = 0.0,
    ) -> None:
        self.factors, self.protect_below = factors, protect_below
        self._single = self.penalty = penalty
        self._coupled = None if channel is None else Coupled(penalty, channel)
        if self._coupled is not None:
            self.penalty = self._coupled
        self._protecting: ProtectingPenalty | None = None
        if protect_below and len(factors):
            self._protecting = ProtectingPenalty(self.penalty, factors.layers(), protect_below)
            self.penalty = self._protecting
        self._before: Tensor | None = None

    def __len__(self) -> int:
        return len(self.factors)

    def magnitudes(self) -> Tensor:
        """Return |γ|, or for coupled γ the norm of their channel, shape `(num_factors,)`."""
        gamma = self.factors.flat()
        if self._coupled is None:
            return gamma.abs()
        return self._coupled.norms(gamma)[self._coupled.channel]

    def sizes_to_go(self) -> Tensor:
        """Return the magnitudes, infinity for γ that are protected whatever happens."""
        if self._protecting is None:
            return self.magnitudes()
        return self._protecting.sizes_to_go(self.factors.flat())

    def protect(self, share: float, *, only: bool) -> None:
        """Let no more than a share of γ go; with `only` pull at nothing else."""
        if self._protecting is not None:
            self._protecting.share, self._protecting.only = share, only

    def value(self) -> float:
        """Return R(γ)."""
        return float(self.penalty.value(self.factors.flat()))

    def share_below(self, size: float) -> float:
        """Return the share of γ whose magnitude is below `size`."""
        return float((self.magnitudes() < size).float().mean())

    def mean_size(self) -> float:
        """Return the mean magnitude; 0 where nothing is pulled."""
        return float(self.magnitudes().mean()) if self else 0.0

    def slope(self, size: float) -> float:
        """Return the mean pull ∂R/∂γ at γ that all have the same size > 0."""
        gamma = self.factors.flat()
        number = len(gamma) if self._coupled is None else self._coupled.num_channels
        return float(self._single.gradient(gamma.new_full((number,), size)).mean())

    def reach(self, optimizers: Sequence[Optimizer], *, proximal: bool) -> float:
        """Return how far a gradient of 1 carries a γ at most, by the learning rates of now.

        Args:
            optimizers: Those of the network.
            proximal: Whether the pull leaves out the momentum of the optimizer.
        """
        gammas = {id(gamma) for gamma in self.factors.named_parameters().values()}
        reach = 0.0
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            if any(id(parameter) in gammas for parameter in group["params"]):
                momentum = 0.0 if proximal else float(group.get("momentum", 0.0))
                reach = max(reach, float(group["lr"]) / max(1 - momentum, 1e-3))
        return reach

    def gradient_size(self, optimizers: Sequence[Optimizer]) -> float | None:
        """Return the mean size by which Adam and its like divide the gradients of γ; else None."""
        found = []
        for optimizer in optimizers:
            for gamma in self.factors.named_parameters().values():
                state = optimizer.state.get(gamma, {})
                if "exp_avg_sq" in state and "betas" in optimizer.defaults:
                    fading: float = optimizer.defaults["betas"][1] ** float(state["step"])
                    found.append(state["exp_avg_sq"].mean() / (1 - fading))
        return float(torch.stack(found).mean().sqrt()) if found else None

    def add_gradient(self, trainer: pl.Trainer, strength: float, optimizer: Optimizer) -> None:
        """Add `strength · ∂R/∂γ` to the gradients, in the scale that they have now."""
        weight = strength * _gradient_scale(trainer, optimizer)
        self.factors.add_gradient(self.penalty, weight, optimizer)
        # Also at λ = 0: an optimizer remembers the pull of the steps before.
        if self._protecting is not None and self._before is None:
            self._before = self.factors.flat()

    def hold_up(self, optimizer: Optimizer) -> None:
        """Put back, after a step with the penalty in its gradient, what must not go."""
        if self._protecting is not None and self._before is not None:
            held = self._protecting.hold_up(self._before, self.factors.flat())
            self.factors.replace(held, optimizer)
        self._before = None

    def shrink(self, strength: float, optimizer: Optimizer) -> None:
        """Replace γ by `prox(γ, lr · strength)`, unless the step before was skipped."""
        # A fused optimizer under AMP skips a step with infinite gradients inside its kernel.
        if not bool(getattr(optimizer, "found_inf", False)):
            assert isinstance(self.penalty, ProximalPenalty)
            self.factors.shrink(self.penalty, strength, optimizer)


class Coupling:
    """Asks the network which γ belong to one channel, and remembers while the γ stay the same."""

    def __init__(self) -> None:
        self._sizes: dict[str, int] = {}
        self._channel = torch.zeros(0, dtype=torch.int64)

    def find(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, factors: ScalingFactors
    ) -> Tensor:
        """Return the channel of each γ, as `coupled_channels` gives it.

        Args:
            trainer: A Trainer in training; a batch of its data is looked at.
            pl_module: Its LightningModule.
            factors: The γ.
        """
        gammas = factors.named_parameters()
        sizes = {name: gamma.numel() for name, gamma in gammas.items()}
        if sizes != self._sizes:
            batches = training_batches(trainer, pl_module, 1, seed=0)
            calls = capture_calls(trainer, pl_module, batches, training=True)
            with traceless(trainer):
                few, _ = examples_of(pl_module, calls, FEW_SAMPLES, training=True)
                surgery = ChannelSurgery(pl_module, few)
            self._channel = coupled_channels(surgery, list(gammas.values()))
            self._sizes = sizes
        return self._channel


def _gradient_scale(trainer: pl.Trainer, optimizer: Optimizer) -> float:
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    # Lightning unscales before our hook, except where the optimizer does it inside its step.
    if scaler is None or not getattr(optimizer, "_step_supports_amp_scaling", False):
        return 1.0
    return float(scaler.get_scale())
