"""What pulls at which γ of the network as it is now; built anew each epoch and after surgery."""

from __future__ import annotations

from collections.abc import Sequence

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.optim import Optimizer

from lightning_slimga.callbacks.internals import capture_calls, training_batches
from lightning_slimga.running.calls import FEW_SAMPLES, narrowed
from lightning_slimga.sparsity.coupling import coupled_channels
from lightning_slimga.sparsity.penalties import Coupled, Penalty, ProximalPenalty
from lightning_slimga.sparsity.protected import Sparing
from lightning_slimga.sparsity.scaling_factors import NormName, ScalingFactors
from lightning_slimga.surgery.channel_surgery import ChannelSurgery


class Pull:
    """A penalty together with the γ it acts on.

    Args:
        factors: The γ.
        penalty: The penalty of single γ.
        channel: The channel of each γ, to penalise the norm of each channel instead; or None.
        spare_below: The largest γ of a layer is spared below this size; 0 spares none.
    """

    def __init__(
        self,
        factors: ScalingFactors,
        penalty: Penalty,
        *,
        channel: Tensor | None = None,
        spare_below: float = 0.0,
    ) -> None:
        self.factors, self.spare_below = factors, spare_below
        self.single = self.penalty = penalty
        self._coupled = None if channel is None else Coupled(penalty, channel)
        if self._coupled is not None:
            self.penalty = self._coupled
        self.sparing: Sparing | None = None
        self._before: Tensor | None = None
        if spare_below and len(factors):
            sizes = [gamma.numel() for gamma in factors.named_parameters().values()]
            device = factors.flat().device
            layer = torch.arange(len(sizes), device=device)
            layer = layer.repeat_interleave(torch.tensor(sizes, device=device))
            self.penalty = self.sparing = Sparing(self.penalty, layer, spare_below, channel)

    def __len__(self) -> int:
        return len(self.factors)

    def magnitudes(self) -> Tensor:
        """Return |γ|, or for coupled γ the norm of their channel, shape `(num_factors,)`."""
        gamma = self.factors.flat()
        return gamma.abs() if self._coupled is None else self._coupled.sizes(gamma)

    def sizes_to_go(self) -> Tensor:
        """Return the magnitudes, infinity for γ that are spared whatever happens."""
        return self.sparing.sizes_to_go(self.factors.flat()) if self.sparing else self.magnitudes()

    def value(self) -> float:
        """Return R(γ)."""
        return float(self.penalty.value(self.factors.flat()))

    def share_below(self, size: float) -> float:
        """Return the share of γ whose magnitude is below `size`."""
        return float((self.magnitudes() < size).float().mean())

    def slope(self, size: float) -> float:
        """Return the mean pull ∂R/∂γ at γ that all have the same size > 0."""
        gamma = self.factors.flat()
        number = len(gamma) if self._coupled is None else self._coupled.num_channels
        return float(self.single.gradient(gamma.new_full((number,), size)).mean())

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

    def add_gradient(self, trainer: pl.Trainer, strength: float, optimizer: Optimizer) -> None:
        """Add `strength · ∂R/∂γ` to the gradients, in the scale that they have now."""
        weight = strength * _gradient_scale(trainer, optimizer)
        self.factors.add_gradient(self.penalty, weight, optimizer)
        # Also at λ = 0: an optimizer remembers the pull of the steps before.
        if self.sparing and self._before is None:
            self._before = self.factors.flat()

    def hold_up(self, optimizer: Optimizer) -> None:
        """Put back, after a step with the penalty in its gradient, what must not go."""
        if self.sparing is not None and self._before is not None:
            held = self.sparing.hold_up(self._before, self.factors.flat())
            self.factors.replace(held, optimizer)
        self._before = None

    def shrink(self, strength: float, optimizer: Optimizer) -> None:
        """Replace γ by `prox(γ, lr · strength)`, unless the step before was skipped."""
        # A fused optimizer under AMP skips a step with infinite gradients inside its kernel.
        if not bool(getattr(optimizer, "found_inf", False)):
            assert isinstance(self.penalty, ProximalPenalty)
            self.factors.shrink(self.penalty, strength, optimizer)


def find_factors(
    pl_module: pl.LightningModule,
    *,
    include: Sequence[str],
    ignore: Sequence[str],
    norms: Sequence[NormName],
    trainable: bool = False,
) -> ScalingFactors:
    """Return the chosen γ; arguments as for `ScalingFactors`.

    Raises:
        MisconfigurationException: If there is none, trainable now or not.
    """
    factors = ScalingFactors(
        pl_module, include=include, ignore=ignore, norms=norms, trainable=trainable
    )
    if not len(factors) and not trainable:
        raise MisconfigurationException(
            f"SparsityCallback expected {type(pl_module).__name__} to have scaling factors γ "
            f"(weights of affine layers of the kinds {list(norms)}), but found none. Put "
            "normalisation layers behind the convolutions, choose others with `norms`, `include` "
            "and `ignore`, or leave this callback out: GeneticPruneCallback alone works there, its "
            "evaluation factor falls back to the norm of the slices."
        )
    return factors


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
            surgery = ChannelSurgery(pl_module, [narrowed(call, FEW_SAMPLES)[0] for call in calls])
            self._channel = coupled_channels(surgery, list(gammas.values()))
            self._sizes = sizes
        return self._channel


def _gradient_scale(trainer: pl.Trainer, optimizer: Optimizer) -> float:
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    # Lightning unscales before our hook, except where the optimizer does it inside its step.
    if scaler is None or not getattr(optimizer, "_step_supports_amp_scaling", False):
        return 1.0
    return float(scaler.get_scale())
