"""Sparsity penalties on scaling factors γ: value, (sub-)gradient and, where one is known, prox.

A penalty sees all chosen γ of a network at once, as one 1-D tensor. That costs a handful of kernels
per step however many layers there are, and lets a penalty compare γ with each other
(`Polarization`). A penalty of your own is any object with `value` and `gradient` (see `Penalty`).
"""

from __future__ import annotations

from typing import Literal, Protocol, get_args, runtime_checkable

import torch
from torch import Tensor

from lightning_slimga.arguments import AMOUNT, POSITIVE, as_called

PenaltyName = Literal["l1_2", "l1", "polarization"]


@runtime_checkable
class Penalty(Protocol):
    """What every penalty offers: R(γ) and a sub-gradient of it.

    Examples:
        >>> class Squares:
        ...     def value(self, gamma):
        ...         return gamma.square().sum()
        ...
        ...     def gradient(self, gamma):
        ...         return 2 * gamma
        >>> isinstance(Squares(), Penalty)
        True
    """

    def value(self, gamma: Tensor) -> Tensor:
        """Return the scalar R(γ) for `gamma` of shape `(num_factors,)`."""
        ...

    def gradient(self, gamma: Tensor) -> Tensor:
        """Return a sub-gradient ∂R/∂γ of the shape of `gamma`."""
        ...


@runtime_checkable
class ProximalPenalty(Penalty, Protocol):
    """A penalty whose proximal operator has a closed form.

    Examples:
        >>> isinstance(L1(), ProximalPenalty), isinstance(Polarization(), ProximalPenalty)
        (True, False)
    """

    def prox(self, gamma: Tensor, step: float | Tensor) -> Tensor:
        """Return `argmin_x ½‖x − γ‖² + step · R(x)`, of the shape of `gamma`; `step >= 0`."""
        ...


class L1Half:
    """Gradient-limited L1/2: `R(γ) = Σ_i (|γ_i| + ε)^½`.

    The patent CN111105035A and its paper (Wang et al., "Network pruning using sparse learning and
    genetic algorithm", Neurocomputing 404, 2020) name a *gradient-limited L1/2 regularization* with
    a "constant constraint term" ε, but print the formula as an image that no copy we know of shows,
    and publish no ε. **The formula is our reading, and the value of ε is ours.**

    `∂R/∂γ_i = sign(γ_i) / (2 (|γ_i| + ε)^½)` is bounded by `1 / (2 ε^½)` and is 0 at γ_i = 0. A
    gradient step of size lr·λ therefore leaves noise of about `lr·λ / (2 ε^½)` around zero. With
    lr = 0.1 and λ = 1e-4 the default ε = 1e-4 keeps that at 5e-4, well below the 1e-2 under
    which a γ counts as near zero; a smaller ε comes closer to the plain L1/2 but shakes harder.

    Args:
        epsilon: ε > 0, the constraint term that limits the gradient.

    Raises:
        ValueError: If `epsilon` is not a positive number.

    Examples:
        >>> penalty = L1Half(epsilon=0.01)
        >>> penalty.value(torch.tensor([0.24, -0.35, 0.0]))  # 0.5 + 0.6 + 0.1
        tensor(1.2000)
        >>> penalty.gradient(torch.tensor([0.24, -0.24, 0.0]))
        tensor([ 1., -1.,  0.])
        >>> penalty.prox(torch.tensor([0.2, -0.01]), step=0.1)[1]  # small ones become 0
        tensor(0.)
    """

    def __init__(self, epsilon: float = 1e-4) -> None:
        self.epsilon = float(POSITIVE.check("epsilon", epsilon))

    def __repr__(self) -> str:
        return as_called(self, vars(self))

    def value(self, gamma: Tensor) -> Tensor:
        """Return `Σ (|γ| + ε)^½`, a scalar."""
        return (gamma.abs() + self.epsilon).sqrt().sum()

    def gradient(self, gamma: Tensor) -> Tensor:
        """Return `sign(γ) / (2 (|γ| + ε)^½)`."""
        return gamma.abs().add_(self.epsilon).rsqrt_().mul_(0.5).mul_(gamma.sign())

    def prox(self, gamma: Tensor, step: float | Tensor) -> Tensor:
        """Return the half thresholding of `gamma`: exact zeros below `3/2 · step^⅔`.

        Closed form for the plain `|x|^½` (ε = 0: a proximal step needs no limited gradient), from
        Xu, Chang, Xu, Zhang, "L1/2 regularization: a thresholding representation theory and a fast
        solver", IEEE TNNLS 23(7), 2012, with λ = 2·step: theirs minimises `(x − γ)² + λ|x|^½`.
        """
        size = gamma.abs()
        cosine = (step / 4 * (size / 3).pow(-1.5)).clamp(max=1.0)
        shrunk = gamma * (2 / 3) * (1 + torch.cos(2 / 3 * (torch.pi - torch.acos(cosine))))
        return torch.where(size > 1.5 * step ** (2 / 3), shrunk, torch.zeros_like(gamma))


class L1:
    """L1, the penalty of network slimming (Liu et al., ICCV 2017): `R(γ) = Σ_i |γ_i|`.

    Examples:
        >>> L1().gradient(torch.tensor([0.5, -2.0, 0.0]))
        tensor([ 1., -1.,  0.])
        >>> L1().prox(torch.tensor([0.5, -2.0, 0.25]), step=0.5)
        tensor([ 0.0000, -1.5000,  0.0000])
    """

    def __repr__(self) -> str:
        return as_called(self, {})

    def value(self, gamma: Tensor) -> Tensor:
        """Return `Σ |γ|`, a scalar."""
        return gamma.abs().sum()

    def gradient(self, gamma: Tensor) -> Tensor:
        """Return `sign(γ)`, which is 0 at γ = 0."""
        return gamma.sign()

    def prox(self, gamma: Tensor, step: float | Tensor) -> Tensor:
        """Return the soft thresholding `sign(γ) · max(|γ| − step, 0)`."""
        return gamma.sign() * (gamma.abs() - step).clamp(min=0)


class Polarization:
    """Polarization: `R(γ) = t Σ_i |γ_i| − Σ_i |γ_i − mean(γ)|`.

    Zhuang et al., "Neuron-level structured pruning using polarization regularizer", NeurIPS 2020,
    equation 2. It pushes some γ to zero and the others away from the mean of the whole network. The
    paper also keeps γ within [0, a] by clamping after each step; this penalty does not clamp.

    Args:
        t: Weight of the L1 part; the paper searches about 1.0 to 1.4. Larger t, more zeros.

    Raises:
        ValueError: If `t` is no number, negative or infinite.

    Examples:
        >>> Polarization(t=1.25).gradient(torch.tensor([1.0, 3.0]))  # their mean is 2
        tensor([2.2500, 0.2500])
    """

    def __init__(self, t: float = 1.2) -> None:
        self.t = float(AMOUNT.check("t", t))

    def __repr__(self) -> str:
        return as_called(self, vars(self))

    def value(self, gamma: Tensor) -> Tensor:
        """Return `t Σ |γ| − Σ |γ − mean(γ)|`, a scalar (negative values are normal)."""
        return self.t * gamma.abs().sum() - (gamma - gamma.mean()).abs().sum()

    def gradient(self, gamma: Tensor) -> Tensor:
        """Return `t sign(γ) − sign(γ − mean) + mean(sign(γ − mean))`."""
        side = (gamma - gamma.mean()).sign_()
        return self.t * gamma.sign() - side + side.mean()


class Coupled:
    """A penalty on whole channels: the norm of the γ that the network ties together replaces |γ|.

    With n_c the Euclidean norm of the γ of channel c, `R(γ) = penalty.value(n)` and, by the chain
    rule, `∂R/∂γ_i = penalty.gradient(n)_c · γ_i / n_c` (0 where n_c = 0), as in the group lasso. A
    coupled channel then goes as a whole, not in parts. Coupling is ours, not the paper's.

    Args:
        penalty: The penalty for the norms.
        channel: Shape `(num_factors,)`, int64: the channel, counted from 0, of each γ.

    Examples:
        >>> coupled = Coupled(L1(), torch.tensor([0, 0, 1]))
        >>> coupled.gradient(torch.tensor([3.0, 4.0, 2.0]))  # norms of 5 and 2
        tensor([0.6000, 0.8000, 1.0000])
    """

    def __init__(self, penalty: Penalty, channel: Tensor) -> None:
        self.penalty = penalty
        self.channel = channel
        self.num_channels = int(channel.max()) + 1 if channel.numel() else 0

    def norms(self, gamma: Tensor) -> Tensor:
        """Return the norm of each channel's γ, shape `(num_channels,)`."""
        squares = gamma.new_zeros(self.num_channels).index_add(0, self.channel, gamma.square())
        return squares.sqrt()

    def value(self, gamma: Tensor) -> Tensor:
        """Return the penalty of the norms, a scalar."""
        return self.penalty.value(self.norms(gamma))

    def gradient(self, gamma: Tensor) -> Tensor:
        """Return the penalty's gradient at the norms times `γ / norm`."""
        norms = self.norms(gamma)
        return gamma * _ratio(self.penalty.gradient(norms), norms)[self.channel]

    def prox(self, gamma: Tensor, step: float | Tensor) -> Tensor:
        """Shrink each channel's γ by the prox of its norm, which is exact for a penalty of norms.

        Raises:
            TypeError: If the penalty itself has no prox.
        """
        norms = self.norms(gamma)
        return gamma * _ratio(proximal(self.penalty).prox(norms, step), norms)[self.channel]


def proximal(penalty: Penalty) -> ProximalPenalty:
    """Return the penalty itself.

    Raises:
        TypeError: If it has no `prox`.
    """
    if not isinstance(penalty, ProximalPenalty):
        raise TypeError(f"Expected a penalty with a closed-form `prox`, but got {penalty!r}.")
    return penalty


def _ratio(numerator: Tensor, norms: Tensor) -> Tensor:
    return torch.where(norms > 0, numerator / norms, torch.zeros_like(norms))


PENALTIES: dict[str, type[L1Half] | type[L1] | type[Polarization]] = {
    "l1_2": L1Half,
    "l1": L1,
    "polarization": Polarization,
}
assert set(PENALTIES) == set(get_args(PenaltyName))


def make_penalty(penalty: str | Penalty, *, epsilon: float | None = None) -> Penalty:
    """Return the penalty of that name, or the given object if it is a penalty already.

    Args:
        penalty: A name from `PENALTIES`, or any object with `value` and `gradient`.
        epsilon: ε of "l1_2"; None takes its default. No other penalty has one.

    Raises:
        ValueError: If the name is unknown, or `epsilon` is given to a penalty that has none.
        TypeError: If the object is neither a name nor a penalty.
    """
    if epsilon is not None and penalty != "l1_2":
        raise ValueError(
            f"Expected argument `epsilon` only together with penalty 'l1_2', but got {penalty!r}."
        )
    if isinstance(penalty, str):
        if penalty not in PENALTIES:
            raise ValueError(
                f"Expected argument `penalty` to be one of {sorted(PENALTIES)} "
                f"or an object with `value` and `gradient`, but got {penalty!r}."
            )
        return PENALTIES[penalty]() if epsilon is None else L1Half(epsilon)
    if isinstance(penalty, type) or not isinstance(penalty, Penalty):
        raise TypeError(
            f"Expected argument `penalty` to be one of {sorted(PENALTIES)} or an object with the "
            f"methods `value(gamma)` and `gradient(gamma)`, but got {penalty!r}."
        )
    return penalty
