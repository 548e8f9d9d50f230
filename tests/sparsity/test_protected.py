"""What no penalty may carry away, whatever its step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_slimga.sparsity.penalties import L1, Coupled, L1Half, Polarization
from lightning_slimga.sparsity.protected import ProtectingPenalty, smallest


def test_it_leaves_the_largest_of_each_layer_once_it_is_small() -> None:
    gamma = torch.tensor([0.05, -0.09, 0.02, 0.5, 0.03], dtype=torch.float64)
    protecting = ProtectingPenalty(L1(), torch.tensor([0, 0, 0, 1, 1]), below=0.1)
    assert protecting.gradient(gamma).tolist() == [1.0, 0.0, 1.0, 1.0, 1.0]
    assert protecting.prox(gamma, 0.2).tolist() == pytest.approx([0.0, -0.09, 0.0, 0.3, 0.0])
    torch.testing.assert_close(protecting.value(gamma), gamma.abs().sum())


def test_it_penalises_only_the_smallest_share() -> None:
    gamma = torch.tensor([0.5, -0.9, 0.2, 0.7, 0.3])
    protecting = ProtectingPenalty(L1(), torch.zeros(5, dtype=torch.int64), below=0.1)
    protecting.share, protecting.only = 0.4, True
    assert protecting.gradient(gamma).tolist() == [0.0, 0.0, 1.0, 0.0, 1.0]
    # 0.2 and 0.5 are one channel: its norm is what is compared.
    coupled = Coupled(L1(), torch.tensor([0, 1, 0, 2, 3]))
    protecting = ProtectingPenalty(coupled, torch.zeros(5, dtype=torch.int64), 0.1)
    protecting.share, protecting.only = 0.4, True
    assert (protecting.gradient(gamma) != 0).tolist() == [True, False, True, False, True]


LAYERS = torch.arange(4).repeat_interleave(torch.tensor([1, 2, 8, 13]))


@pytest.mark.parametrize("penalty", [L1(), L1Half()])
@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.parametrize("step", [1e-3, 0.08, 1.0, 1e6])
@pytest.mark.parametrize("share", [0.5, 0.9, 1.0])
def test_no_step_empties_a_layer(
    penalty: L1 | L1Half, coupled: bool, step: float, share: float
) -> None:
    generator = torch.Generator().manual_seed(3)
    gamma = torch.rand(24, generator=generator) * 2 - 1
    channel = torch.randint(0, 10, (24,), generator=generator) if coupled else None
    inner = penalty if channel is None else Coupled(penalty, channel)
    protecting = ProtectingPenalty(inner, LAYERS, 0.1)
    protecting.share = share
    start = sizes(gamma, channel)
    for only in (False, False, True):
        protecting.only = only
        gamma = protecting.prox(gamma, step)
    left = sizes(gamma, channel)
    for layer in range(4):
        mine = layer == LAYERS
        assert left[mine].max() >= min(0.1, float(start[mine].max())) - 1e-6


def sizes(gamma: Tensor, channel: Tensor | None) -> Tensor:
    if channel is None:
        return gamma.abs()
    return torch.stack([gamma[channel == c].norm() for c in channel])


@pytest.mark.parametrize("ties", [False, True])
def test_no_more_than_the_share_goes_however_hard_the_pull(ties: bool) -> None:
    gamma = torch.ones(24) if ties else torch.linspace(0.1, 1, 24)
    protecting = ProtectingPenalty(L1Half(), LAYERS, 0.1)
    protecting.share = 0.5
    for _ in range(5):
        gamma = protecting.prox(gamma, 1e3)
    assert int((gamma < 1e-2).sum()) == 12
    assert (gamma[gamma >= 1e-2] >= 0.1 - 1e-6).all()


def test_a_layer_keeps_half_of_what_an_even_cut_would_leave() -> None:
    gamma = torch.cat([torch.full((12,), 0.2), torch.full((20,), 5.0)])
    layer = torch.arange(2).repeat_interleave(torch.tensor([12, 20]))
    protecting = ProtectingPenalty(L1(), layer, 0.1)
    protecting.share = 0.5
    for _ in range(3):
        gamma = protecting.prox(gamma, 10.0)
    assert int((gamma[:12] > 0).sum()) == 3
    assert int((gamma > 0).sum()) == 16


def test_an_optimizer_cannot_take_the_largest_of_a_layer() -> None:
    before = torch.tensor([0.15, -0.02, 0.5, -0.3, 0.04, 0.03])
    protecting = ProtectingPenalty(Polarization(), torch.tensor([0, 0, 1, 1, 2, 2]), 0.1)
    after = torch.tensor([0.0, 0.0, -0.4, 0.0, 0.01, 0.02])
    held = protecting.hold_up(before, after)
    assert held.tolist() == pytest.approx([0.1, 0.0, -0.4, 0.0, 0.04, 0.02])


def test_sizes_to_go_leave_out_what_stays() -> None:
    gamma = torch.tensor([0.5, -0.9, 0.2, 0.05, -0.01])
    protecting = ProtectingPenalty(L1(), torch.tensor([0, 0, 0, 1, 1]), 0.1)
    size = protecting.sizes_to_go(gamma)
    assert size.tolist() == pytest.approx([0.5, float("inf"), 0.2, float("inf"), 0.01])
    assert float(smallest(size, 0.4)) == pytest.approx(0.2)
    assert float(smallest(size, 0.99)) == 0.5  # no more can go


def test_a_layer_of_no_numbers_does_not_disturb_the_others() -> None:
    gamma = torch.tensor([float("nan"), float("nan"), 0.2, 0.3])
    protecting = ProtectingPenalty(L1(), torch.tensor([0, 0, 1, 1]), 0.1)
    assert protecting.prox(gamma, 1.0)[2:].tolist() == pytest.approx([0.0, 0.1])
