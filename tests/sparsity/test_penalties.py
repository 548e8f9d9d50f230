from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lightning_slimga.sparsity.penalties import (
    L1,
    PENALTIES,
    Coupled,
    L1Half,
    Penalty,
    Polarization,
    ProximalPenalty,
    make_penalty,
)

SHAPES = [1, 2, 7, 400]
ALL = [L1Half(), L1Half(1e-2), L1(), Polarization(), Polarization(t=0.7)]


@pytest.mark.parametrize(
    ("penalty", "by_hand"),
    [
        (L1Half(0.01), 0.5 + 0.6 + 0.1 + 1.0),
        (L1(), 0.24 + 0.35 + 0.0 + 0.99),
        # the mean is 0.22
        (Polarization(t=2.0), 2 * 1.58 - (0.02 + 0.57 + 0.22 + 0.77)),
    ],
    ids=repr,
)
def test_values_by_hand(penalty: Penalty, by_hand: float) -> None:
    gamma = torch.tensor([0.24, -0.35, 0.0, 0.99], dtype=torch.float64)
    assert float(penalty.value(gamma)) == pytest.approx(by_hand)


@pytest.mark.parametrize("penalty", ALL, ids=repr)
@pytest.mark.parametrize("size", SHAPES)
def test_the_gradient_is_that_of_the_value(penalty: Penalty, size: int) -> None:
    gamma = torch.randn(size, dtype=torch.float64, requires_grad=True)
    penalty.value(gamma).backward()
    torch.testing.assert_close(penalty.gradient(gamma.detach()), gamma.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("penalty", ALL, ids=repr)
def test_gradient_leaves_gamma_alone(penalty: Penalty) -> None:
    gamma = torch.randn(9)
    before = gamma.clone()
    penalty.gradient(gamma)
    penalty.value(gamma)
    assert torch.equal(gamma, before)


@pytest.mark.parametrize("penalty", [L1Half(), L1()])
def test_gradient_at_zero_is_zero(penalty: Penalty) -> None:
    gradient = penalty.gradient(torch.tensor([0.0, -0.0, 0.3, -0.3]))
    assert gradient[:2].tolist() == [0.0, 0.0]
    assert gradient[2] == -gradient[3] > 0


@pytest.mark.parametrize("epsilon", [1e-6, 1e-4, 1e-1])
def test_gradient_of_l1_half_is_bounded(epsilon: float) -> None:
    penalty, bound = L1Half(epsilon), 1 / (2 * math.sqrt(epsilon))
    gamma = torch.cat([torch.logspace(-30, 3, 500), -torch.logspace(-30, 3, 500)]).double()
    sizes = penalty.gradient(gamma).abs()
    assert sizes.max() <= bound * (1 + 1e-12)
    assert sizes.max() > 0.999 * bound  # and the bound is tight


def brute_force(penalty: Penalty, gamma: float, step: float) -> float:
    """Minimise ½(x − γ)² + step·R(x) on a fine grid that holds 0 exactly."""
    grid = torch.linspace(0, abs(gamma), 200_001, dtype=torch.float64)
    cost = abs(grid - abs(gamma)) ** 2 / 2
    cost += step * (grid.sqrt() if isinstance(penalty, L1Half) else grid)
    return math.copysign(float(grid[cost.argmin()]), gamma)


@pytest.mark.parametrize("penalty", [L1Half(), L1()])
@pytest.mark.parametrize("step", [1e-4, 1e-2, 0.3, 2.0])
def test_prox_equals_a_brute_force_minimiser(penalty: ProximalPenalty, step: float) -> None:
    gamma = torch.tensor([-3.0, -0.5, -0.011, 0.0, 0.004, 0.08, 0.7, 1.0, 2.4], dtype=torch.float64)
    expected = torch.tensor(
        [brute_force(penalty, float(g), step) for g in gamma], dtype=torch.float64
    )

    result = penalty.prox(gamma, step)

    torch.testing.assert_close(result, expected, rtol=0, atol=3e-5)
    assert torch.equal(result == 0, expected == 0)


def test_half_thresholding_jumps_at_its_threshold() -> None:
    step = 0.1
    threshold = 1.5 * step ** (2 / 3)
    below, above = L1Half().prox(torch.tensor([threshold - 1e-4, threshold + 1e-4]), step)
    assert below == 0
    assert float(above) == pytest.approx(2 / 3 * threshold, abs=1e-3)


@pytest.mark.parametrize("penalty", [L1Half(), L1()])
def test_prox_takes_a_tensor_step_and_step_zero_changes_nothing(penalty: ProximalPenalty) -> None:
    gamma = torch.tensor([-0.4, 0.0, 0.02, 1.0], dtype=torch.float64)
    torch.testing.assert_close(penalty.prox(gamma, 0.0), gamma)
    step = torch.tensor(0.01, dtype=torch.float64)
    torch.testing.assert_close(penalty.prox(gamma, step), penalty.prox(gamma, 0.01))


@pytest.mark.parametrize("penalty", ALL)
def test_coupled_gradient_equals_autograd(penalty: Penalty) -> None:
    gamma = torch.randn(6, dtype=torch.float64, requires_grad=True)
    norms = torch.stack([gamma[[0, 3]].norm(), gamma[1].abs(), gamma[[2, 4, 5]].norm()])
    value = penalty.value(norms)
    value.backward()

    coupled = Coupled(penalty, torch.tensor([0, 1, 2, 0, 2, 2]))

    torch.testing.assert_close(coupled.value(gamma), value)
    torch.testing.assert_close(coupled.gradient(gamma.detach()), gamma.grad)


def test_coupled_channel_of_zeros_gets_no_gradient() -> None:
    coupled = Coupled(L1Half(), torch.tensor([0, 0, 1]))
    gradient = coupled.gradient(torch.tensor([0.0, 0.0, 1.0]))
    assert gradient[:2].tolist() == [0.0, 0.0]
    assert gradient[2] > 0


def test_coupled_prox_minimises_over_the_whole_channel() -> None:
    gamma, step = torch.tensor([0.6, -0.8], dtype=torch.float64), 0.2
    side = torch.linspace(-1, 1, 801, dtype=torch.float64)
    x = torch.stack(torch.meshgrid(side, side, indexing="ij"), dim=-1)
    cost = (x - gamma).square().sum(-1) / 2 + step * x.norm(dim=-1).sqrt()
    best = x.view(-1, 2)[cost.argmin()]

    result = Coupled(L1Half(), torch.tensor([0, 0])).prox(gamma, step)

    torch.testing.assert_close(result, best, rtol=0, atol=3e-3)


def test_coupled_prox_removes_a_channel_as_a_whole() -> None:
    gamma = torch.tensor([0.01, 0.5, 0.01, 0.02])
    result = Coupled(L1(), torch.tensor([0, 0, 1, 1])).prox(gamma, 0.1)
    assert result[2:].tolist() == [0.0, 0.0]
    assert (result[:2] > 0).all()  # 0.01 survives beside its strong partner


def test_coupled_prox_needs_a_prox() -> None:
    with pytest.raises(TypeError, match="Expected a penalty with a closed-form `prox`"):
        Coupled(Polarization(), torch.tensor([0])).prox(torch.ones(1), 0.1)


class Squared:
    """A penalty of one's own."""

    def value(self, gamma: Tensor) -> Tensor:
        return gamma.square().sum()

    def gradient(self, gamma: Tensor) -> Tensor:
        return 2 * gamma


def test_make_penalty() -> None:
    assert {name: type(make_penalty(name)) for name in PENALTIES} == PENALTIES
    assert make_penalty("l1_2", epsilon=0.5).epsilon == 0.5
    own = Squared()
    assert make_penalty(own) is own
    assert not isinstance(own, ProximalPenalty)


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"\['l1', 'l1_2', 'polarization'\].*but got 'l2'"):
        make_penalty("l2")


@pytest.mark.parametrize("penalty", [Squared, 3, None])
def test_not_a_penalty(penalty: object) -> None:
    with pytest.raises(TypeError, match="Expected argument `penalty` to be one of"):
        make_penalty(penalty)


@pytest.mark.parametrize("penalty", ["l1", Squared()])
def test_epsilon_belongs_to_l1_2(penalty: object) -> None:
    with pytest.raises(ValueError, match=r"Expected argument `epsilon` only together with .*l1_2"):
        make_penalty(penalty, epsilon=1e-3)


@pytest.mark.parametrize("epsilon", [0.0, -1e-4, math.nan])
def test_epsilon_must_be_positive(epsilon: float) -> None:
    with pytest.raises(ValueError, match="Expected argument `epsilon` to be a positive number"):
        L1Half(epsilon)


def test_t_must_not_be_negative() -> None:
    with pytest.raises(
        ValueError, match="Expected argument `t` to be a finite number >= 0, but got -1"
    ):
        Polarization(t=-1)
