from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_slimga.sparsity.penalties import L1, L1Half, Polarization
from lightning_slimga.sparsity.scaling_factors import ScalingFactors


def network() -> nn.Sequential:
    net = nn.Sequential()
    net.add_module("bn", nn.BatchNorm1d(3))
    net.add_module("plain", nn.BatchNorm1d(3, affine=False))
    net.add_module("inner", nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)))
    net.add_module("instance", nn.InstanceNorm2d(5, affine=True))
    net.add_module("group", nn.GroupNorm(2, 6))
    net.add_module("layer", nn.LayerNorm(7))
    return net


def test_batch_and_instance_norms_are_chosen_by_default() -> None:
    factors = ScalingFactors(network())
    assert list(factors.named_parameters()) == ["bn.weight", "inner.1.weight", "instance.weight"]
    assert factors.flat().shape == (12,)
    assert len(factors) == 3


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ({"norms": ["batch"]}, ["bn", "inner.1"]),
        ({"norms": ["group", "layer"]}, ["group", "layer"]),
        ({"include": ["inner.*", "b?"]}, ["bn", "inner.1"]),
        ({"ignore": ["in*"]}, ["bn"]),
        ({"ignore": ["inner", "plain", "inner.0"]}, ["bn", "instance"]),
        ({"include": ["inner"]}, ["inner.1"]),
        ({"include": ["*n*"], "ignore": ["bn"]}, ["inner.1", "instance"]),
    ],
)
def test_choice_by_pattern_and_kind(choice: dict[str, list[str]], names: list[str]) -> None:
    chosen = ScalingFactors(network(), **choice).named_parameters()
    assert list(chosen) == [f"{name}.weight" for name in names]


def test_frozen_factors_are_left_out_on_request() -> None:
    net = network()
    net.bn.weight.requires_grad_(False)
    assert "bn.weight" in ScalingFactors(net).named_parameters()
    assert "bn.weight" not in ScalingFactors(net, trainable=True).named_parameters()


def test_shared_weight_counts_once() -> None:
    net = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3))
    net[1].weight = net[0].weight
    assert ScalingFactors(net).flat().shape == (3,)


def test_compiled_submodule_keeps_its_name() -> None:
    net = nn.Sequential()
    net.add_module("net", torch.compile(network(), backend="eager"))
    chosen = ScalingFactors(net, include=["net.bn"]).named_parameters()
    assert list(chosen) == [
        name for name, _ in net.named_parameters() if name.endswith("bn.weight")
    ]


def test_replaced_parameters_are_found_again() -> None:
    net = network()
    factors = ScalingFactors(net)
    net.bn.weight = nn.Parameter(torch.full((2,), 0.25))
    assert factors.flat()[:2].tolist() == [0.25, 0.25]
    assert factors.flat().shape == (11,)


def test_uninitialised_factors_are_passed_over() -> None:
    assert ScalingFactors(nn.LazyBatchNorm1d()).flat().shape == (0,)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_low_precision_is_computed_in_float32(dtype: torch.dtype, expected: torch.dtype) -> None:
    net = network().to(dtype)
    factors = ScalingFactors(net)
    assert factors.flat().dtype == expected
    net.bn.weight.grad = torch.zeros_like(net.bn.weight)
    factors.add_gradient(L1(), 0.5, torch.optim.SGD(net.parameters(), lr=1.0))
    assert net.bn.weight.grad.dtype == dtype
    assert net.bn.weight.grad.tolist() == [0.5, 0.5, 0.5]


def test_only_what_the_optimizer_owns_and_has_stepped() -> None:
    net = network()
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    net.instance.weight.grad = None
    mine = torch.optim.SGD([*net.bn.parameters(), *net.instance.parameters()], lr=1.0)

    ScalingFactors(net).add_gradient(L1(), 0.1, mine)

    assert net.bn.weight.grad.tolist() == pytest.approx([0.1] * 3)
    assert net.bn.bias.grad.abs().sum() == 0
    assert net.inner[1].weight.grad.abs().sum() == 0
    assert net.instance.weight.grad is None


def test_a_penalty_sees_the_factors_of_all_optimizers() -> None:
    net = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2))
    net[1].weight.data.fill_(3.0)
    net[0].weight.grad = torch.zeros(2)
    ScalingFactors(net).add_gradient(
        Polarization(t=1.2), 1.0, torch.optim.SGD(net[0].parameters(), lr=1.0)
    )
    # The mean is 2, so γ = 1 lies below it: 1.2 + 1 + 0.
    assert net[0].weight.grad.tolist() == pytest.approx([2.2, 2.2])


def test_shrink_uses_the_learning_rate_of_the_owning_group() -> None:
    net = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2), nn.BatchNorm1d(2))
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer = torch.optim.SGD(
        [
            {"params": net[0].parameters(), "lr": 0.1},
            {"params": net[1].parameters(), "lr": 20.0},
        ]
    )
    factors = ScalingFactors(net)
    factors.shrink(L1(), 0.2, optimizer)
    assert net[0].weight.tolist() == pytest.approx([0.98, 0.98])
    assert net[1].weight.tolist() == [0.0, 0.0]
    assert net[2].weight.tolist() == [1.0, 1.0]
    factors.shrink(L1Half(), 0.2, optimizer)
    assert net[0].weight.tolist() == pytest.approx([0.97] * 2, abs=1e-3)
