from __future__ import annotations

import math

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn

from lightning_slimga.callbacks.sparsity import SparsityCallback
from tests.callbacks.sparsity_net import Net, trainer


class Bare(Net):
    def __init__(self) -> None:
        super().__init__()
        self.body[1] = nn.Identity()
        self.side = nn.GroupNorm(2, 4)


def test_a_network_without_factors_is_refused_at_setup() -> None:
    run = trainer(SparsityCallback())
    with pytest.raises(
        MisconfigurationException, match=r"found none\..*GeneticPruneCallback alone works there"
    ):
        run.callbacks[0].setup(run, Bare(), "fit")
    run.callbacks[0].setup(run, Bare(), "validate")
    with pytest.raises(MisconfigurationException, match="found none"):
        run.fit(Bare())


def test_group_norm_on_request() -> None:
    net = Bare()
    with torch.no_grad():
        net.head.weight.zero_()
    net.lr = 0.01
    trainer(SparsityCallback(1.0, norms=["group"])).fit(net)
    assert (net.side.weight < 1).all()


@pytest.mark.parametrize("with_factors", [True, False])
def test_a_network_built_in_setup_is_judged_when_it_is_there(with_factors: bool) -> None:
    class Later(Bare):
        def setup(self, stage: str) -> None:
            if with_factors:
                self.body[1] = nn.BatchNorm1d(4)

    run = trainer(SparsityCallback(0.1))
    if with_factors:
        run.fit(Later())
        assert run.callback_metrics["sparsity/penalty"] < 4
    else:
        with pytest.raises(MisconfigurationException, match="found none"):
            run.fit(Later())


@pytest.mark.parametrize("argument", ["strength", "warmup_epochs", "near_zero"])
@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, None, True])
def test_numbers_out_of_range(argument: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"Expected argument `{argument}` to be a number >= 0"):
        SparsityCallback(**{argument: value})


def test_unknown_penalty() -> None:
    with pytest.raises(ValueError, match=r"\['l1', 'l1_2', 'polarization'\].*but got 'lasso'"):
        SparsityCallback(penalty="lasso")


def test_proximal_needs_a_prox() -> None:
    with pytest.raises(TypeError, match="closed-form `prox` when `proximal=True`, but got 'polar"):
        SparsityCallback(penalty="polarization", proximal=True)


@pytest.mark.parametrize("strength", ["auto", 1e-4])
@pytest.mark.parametrize("target_share", [0.0, 1.0, -0.5, 2.0, None])
def test_target_share_out_of_range(strength: float | str, target_share: float) -> None:
    with pytest.raises(ValueError, match="Expected argument `target_share` to be between 0 and 1"):
        SparsityCallback(strength, target_share=target_share)


@pytest.mark.parametrize("target_epoch", [0, -3, 1.5, True, "2"])
def test_target_epoch_is_a_number_of_epochs(target_epoch: object) -> None:
    with pytest.raises(ValueError, match="`target_epoch` to be an integer >= 1 or None, but got"):
        SparsityCallback("auto", target_epoch=target_epoch)


def test_a_goal_behind_the_end_of_the_fit_is_refused_before_it_starts() -> None:
    callback = SparsityCallback("auto", target_epoch=50)
    run = trainer(callback, max_epochs=2)
    with pytest.raises(MisconfigurationException, match=r"at most `max_epochs`, 2, but got 50"):
        callback.setup(run, Net(), "fit")
    callback.setup(run, Net(), "validate")
    trainer(callback, max_epochs=2, fast_dev_run=True).fit(Net())


@pytest.mark.parametrize("argument", ["coupled", "proximal", "until_surgery", "log"])
def test_switches_are_true_or_false(argument: str) -> None:
    with pytest.raises(ValueError, match=f"`{argument}` to be True.*but got 'x'"):
        SparsityCallback(**{argument: "x"})


def test_strength_is_a_number_or_auto() -> None:
    with pytest.raises(
        ValueError, match="`strength` to be a number >= 0 or \"auto\", but got 'big'"
    ):
        SparsityCallback("big")
