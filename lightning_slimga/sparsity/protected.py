"""Which γ a penalty may not carry away, however strong it is."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lightning_slimga.sparsity.penalties import Coupled, Penalty, proximal


class ProtectingPenalty:
    """A penalty that brings some γ toward zero, and leaves the others a size that they can live on.

    Multiplying all γ of a layer by one number changes nothing when another normalisation follows,
    so a strong penalty can shrink a layer as a whole, at no loss, until it is empty. Therefore the
    largest of each layer *stay*, and the others are judged against them. With `share` below 1 that
    is a part `LEAST` of what an even cut would leave a layer, else one; and only that share of γ,
    the smallest of those that do not have to stay, *goes*; all others stay, too.

    What stays is pulled only as long as it is larger than `below`, and no step carries it further
    than to `below`: the prox ends there, and `hold_up` mends what an optimizer has made of the
    gradient. So the promise does not depend on λ, on the learning rate or on the optimizer. Under
    `prox` the loss may still do with all γ what it wants.

    With `only` what stays is not pulled at all (as in the trimmed lasso: Bertsimas, Copenhaver,
    Mazumder, arXiv 1708.04527, 2017). That all this stands together here is ours, not the paper's.

    Args:
        penalty: The penalty for what goes. If it is `Coupled`, the size of a γ is the norm of its
            channel, else |γ|.
        layer: Shape `(num_factors,)`, int64: the layer, counted from 0, of each γ.
        below: Size > 0 below which nothing that stays is pulled.

    Attributes:
        share: Share of γ in [0, 1] that goes; may be changed at any time.
        only: Whether nothing but what goes is pulled; may be changed at any time.

    Examples:
        >>> from lightning_slimga.sparsity import L1
        >>> layers = torch.tensor([0, 0, 0, 1, 1])
        >>> protecting = ProtectingPenalty(L1(), layers, below=0.25)
        >>> protecting.prox(torch.tensor([0.5, 0.75, -1.0, 0.125, 0.0625]), step=100.0)
        tensor([ 0.0000,  0.0000, -0.2500,  0.1250,  0.0000])
    """

    LEAST = 0.5

    def __init__(self, penalty: Penalty, layer: Tensor, below: float) -> None:
        self.penalty, self.layer, self.below = penalty, layer, below
        self.channel = torch.arange(len(layer), device=layer.device)
        self._sizes: Callable[[Tensor], Tensor] = torch.abs
        if isinstance(penalty, Coupled):
            self.channel, self._sizes = penalty.channel, penalty.norms
        self.gammas_of_layer = torch.bincount(layer)
        self.starts = self.gammas_of_layer.cumsum(0) - self.gammas_of_layer
        self.gammas_of_channel = torch.bincount(self.channel)
        self.share = 1.0
        self.only = False

    def value(self, gamma: Tensor) -> Tensor:
        """Return the penalty of all γ, a scalar."""
        return self.penalty.value(gamma)

    def gradient(self, gamma: Tensor) -> Tensor:
        """Return the penalty's gradient, 0 for what is not pulled."""
        size = self._sizes(gamma)
        free = self._free(size, self._stays(size))
        return self.penalty.gradient(gamma).masked_fill(free[self.channel], 0.0)

    def prox(self, gamma: Tensor, step: float | Tensor) -> Tensor:
        """Return the penalty's prox, γ itself where it is not pulled, nothing carried too far."""
        size = self._sizes(gamma)
        stays = self._stays(size)
        shrunk = proximal(self.penalty).prox(gamma, step)
        shrunk = torch.where(self._free(size, stays)[self.channel], gamma, shrunk)
        return self._not_below(gamma, shrunk, size, stays)

    def hold_up(self, before: Tensor, after: Tensor) -> Tensor:
        """Return `after`, with the largest of each layer put back where they fell too far.

        Args:
            before: γ before a step of an optimizer.
            after: γ after it. What a penalty has done to it cannot be told from what the loss has
                done; so neither may do that to the largest of a layer.
        """
        size = self._sizes(before)
        return self._not_below(before, after, size, self._largest(size))

    def sizes_to_go(self, gamma: Tensor) -> Tensor:
        """Return the size of each γ, infinity for those of each layer that never go."""
        size = self._sizes(gamma)
        return size.masked_fill(self._largest(size), math.inf)[self.channel]

    def _largest(self, size: Tensor) -> Tensor:
        """Return which channels are among the largest of a layer, so that they stay."""
        # Stable sorts rank equal ones by their place, so that all processes choose the same.
        order = size[self.channel].argsort(descending=True, stable=True)
        order = order[self.layer[order].argsort(stable=True)]  # layer by layer, the largest first
        place = torch.arange(len(order), device=size.device) - self.starts[self.layer[order]]
        least = (self.LEAST * (1 - self.share) * self.gammas_of_layer).ceil().clamp(min=1)
        chosen = torch.zeros_like(size).index_put(
            (self.channel[order],),
            (place < least[self.layer[order]]).to(size.dtype),
            accumulate=True,
        )
        return chosen > 0

    def _stays(self, size: Tensor) -> Tensor:
        largest = self._largest(size)
        if self.share >= 1.0:
            return largest
        # By rank and not by a threshold: of several equal ones no more go than are to go.
        order = size.masked_fill(largest, math.inf).argsort(stable=True)
        counts = self.gammas_of_channel[order]
        late = counts.cumsum(0) - counts >= rank(self.share, len(self.layer))
        return torch.empty_like(late).scatter(0, order, late) | largest

    def _free(self, size: Tensor, stays: Tensor) -> Tensor:
        """Return which channels are not pulled at all."""
        return stays if self.only else stays & (size < self.below)

    def _not_below(self, before: Tensor, after: Tensor, size: Tensor, stays: Tensor) -> Tensor:
        floor = size.clamp(max=self.below)
        fell = stays & (self._sizes(after) < floor)
        held = before * (floor / size)[self.channel]
        return torch.where(fell[self.channel], held, after)


def rank(share: float, number: int) -> int:
    """Return how many of `number` γ a share of them is."""
    return round(share * number)


def smallest(size: Tensor, share: float) -> Tensor:
    """Return the size that `share` of all γ do not exceed; a scalar.

    Args:
        size: Shape `(num_factors,)`, not empty; infinite for γ that are not to go. If there are too
            many of these, the largest finite one is returned.
        share: Between 0 and 1.
    """
    finite = int(size.isfinite().sum())
    return size.kthvalue(max(1, min(rank(share, size.numel()), finite))).values
