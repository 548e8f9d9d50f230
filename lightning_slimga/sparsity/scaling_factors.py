"""Which γ a penalty acts on, and how its pull reaches them through an optimizer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from lightning_slimga.graph.exclusions import matching
from lightning_slimga.sparsity.penalties import Penalty, ProximalPenalty

NormName = Literal["batch", "instance", "group", "layer"]

NORM_TYPES: dict[str, tuple[type[nn.Module], ...]] = {
    "batch": (_BatchNorm,),
    "instance": (_InstanceNorm,),
    "group": (nn.GroupNorm,),
    "layer": (nn.LayerNorm,),
}


class ScalingFactors:
    """The scaling factors γ of a network: the weights of its affine normalisation layers.

    The layers are remembered, their Parameters are not: surgery replaces those, so each use looks
    them up again. A weight shared by several layers counts once.

    Args:
        model: Any module.
        include: Patterns of module names, as `matching` takes them; at least one must match.
        ignore: Patterns of module names to leave out.
        norms: Kinds of layers. Group and layer norms are left out unless asked for: they mix
            channels in their statistics, so that γ = 0 does not make a channel removable.
        trainable: Take only γ that require a gradient now.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        include: Sequence[str] = ("*",),
        ignore: Sequence[str] = (),
        norms: Sequence[NormName] = ("batch", "instance"),
        trainable: bool = False,
    ) -> None:
        candidates = _affine_norms(model, norms)
        chosen = _matching_any(candidates, include) - _matching_any(candidates, ignore)
        self._layers = {
            name: layer
            for name, layer in candidates.items()
            if name in chosen and (layer.weight.requires_grad or not trainable)
        }

    def __len__(self) -> int:
        return len(self._layers)

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """Return the current γ Parameters by name, each once."""
        unique: dict[int, tuple[str, nn.Parameter]] = {}
        for name, layer in self._layers.items():
            gamma = layer._parameters["weight"]
            if gamma is not None and not is_lazy(gamma):
                unique.setdefault(id(gamma), (f"{name}.weight" if name else "weight", gamma))
        return dict(unique.values())

    def flat(self) -> Tensor:
        """Return a copy of all γ, shape `(num_factors,)`, at least float32, detached."""
        return _flat(list(self.named_parameters().values()))

    def layers(self) -> Tensor:
        """Return for each γ the number of its layer, counted from 0, shape `(num_factors,)`."""
        sizes = [gamma.numel() for gamma in self.named_parameters().values()]
        numbers = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes, dtype=torch.int64))
        return numbers.to(self.flat().device)

    def add_gradient(self, penalty: Penalty, weight: float, optimizer: Optimizer) -> None:
        """Add `weight · ∂R/∂γ` to the gradients of those γ that `optimizer` owns.

        R is taken over all γ, whoever owns them. A γ without a gradient took no part in this step
        and stays as it is.
        """
        gammas = list(self.named_parameters().values())
        mine = _stepped(gammas, optimizer.param_groups)
        if mine:
            pull = torch.split(penalty.gradient(_flat(gammas)), [g.numel() for g in gammas])
            torch._foreach_add_(
                [gammas[i].grad.view(-1) for i in mine],  # type: ignore[union-attr]
                [pull[i] for i in mine],
                alpha=weight,
            )

    @torch.no_grad()
    def shrink(self, penalty: ProximalPenalty, strength: float, optimizer: Optimizer) -> None:
        """Replace those γ that `optimizer` has just stepped by `prox(γ, lr · strength)`.

        The learning rate is that of the parameter group that owns the γ.
        """
        gammas = list(self.named_parameters().values())
        flat = _flat(gammas)
        for group in optimizer.param_groups:
            mine = _stepped(gammas, [group])
            if mine:
                _put(gammas, mine, penalty.prox(flat, group["lr"] * strength))

    @torch.no_grad()
    def replace(self, flat: Tensor, optimizer: Optimizer) -> None:
        """Set those γ that `optimizer` has just stepped to their part of `flat`."""
        gammas = list(self.named_parameters().values())
        mine = _stepped(gammas, optimizer.param_groups)
        if mine:
            _put(gammas, mine, flat)


def _flat(gammas: list[nn.Parameter]) -> Tensor:
    if not gammas:
        return torch.zeros(0)
    flat = torch.cat([gamma.detach().view(-1) for gamma in gammas])
    # Half precision cannot tell γ + ε from γ; double stays double.
    return flat if flat.dtype == torch.float64 else flat.float()


def _put(gammas: list[nn.Parameter], mine: list[int], flat: Tensor) -> None:
    pieces = torch.split(flat, [g.numel() for g in gammas])
    torch._foreach_copy_([gammas[i].view(-1) for i in mine], [pieces[i] for i in mine])


def _stepped(gammas: list[nn.Parameter], groups: Iterable[dict[str, object]]) -> list[int]:
    owned = {id(p) for group in groups for p in group["params"]}  # type: ignore[attr-defined]
    return [i for i, g in enumerate(gammas) if g.grad is not None and id(g) in owned]


def _affine_norms(model: nn.Module, norms: Sequence[NormName]) -> dict[str, nn.Module]:
    types = tuple(t for kind in norms for t in NORM_TYPES[kind])
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, types) and module._parameters.get("weight") is not None
    }


def _matching_any(names: Iterable[str], patterns: Sequence[str]) -> set[str]:
    return set().union(*(matching(names, pattern) for pattern in patterns))
