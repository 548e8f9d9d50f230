from __future__ import annotations

import inspect
import math
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn

from lightning_slimga.callbacks.sparsity.callback import SparsityCallback
from lightning_slimga.sparsity.penalties import L1Half
from tests.fits.sparsity_net import Net, trainer


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
    with pytest.raises(ValueError, match=f"argument `{argument}` to be a finite number >= 0"):
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
    with pytest.raises(ValueError, match="`target_share` to be a share between 0 and 1, but got"):
        SparsityCallback(strength, target_share=target_share)


@pytest.mark.parametrize("target_epoch", [0, -3, 1.5, True, "2"])
def test_target_epoch_is_a_number_of_epochs(target_epoch: object) -> None:
    with pytest.raises(
        ValueError, match="`target_epoch` to be a whole number of at least 1 or None"
    ):
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
        ValueError, match=r"`strength` to be a finite number >= 0 .* or \"auto\", but got 'big'"
    ):
        SparsityCallback("big")


WRONG: dict[str, list[Any]] = {
    "strength": ["big", None, True, [1.0]],
    "penalty": [3, None, "lasso"],
    "epsilon": [0, -1.0, "x", True, math.nan],
    "proximal": ["x", 1],
    "coupled": [None, 1],
    "warmup_epochs": ["1", math.inf],
    "target_share": ["half", [0.5]],
    "target_epoch": [0, 2.5],
    "include": [None, 3, [3]],
    "ignore": [None, 3, {"a": 1}],
    "norms": [None, [], "batches", ["batch", 3]],
    "near_zero": ["x", -1],
    "until_surgery": [None, "no"],
    "log": [None, "no"],
    "histogram_every_n_epochs": [-1, 0.5, True],
    "name": ["", None, 3],
}


@pytest.mark.parametrize(("argument", "value"), [(a, v) for a in WRONG for v in WRONG[a]])
def test_every_argument_is_checked_by_name(argument: str, value: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=f"xpected argument `{argument}` to be"):
        SparsityCallback(**{argument: value})
    assert sorted(WRONG) == sorted(inspect.signature(SparsityCallback).parameters)


def test_numbers_of_numpy_and_single_patterns_are_taken() -> None:
    callback = SparsityCallback(
        np.float32(0.5), warmup_epochs=np.int64(2), coupled=np.bool_(True), include="body.*"
    )
    assert (callback.strength, type(callback.strength)) == (0.5, float)
    assert type(callback.warmup_epochs) is int
    assert callback.coupling is not None
    assert repr(callback) == (
        "SparsityCallback(strength=0.5, coupled=True, warmup_epochs=2, include=('body.*',))"
    )
    assert repr(SparsityCallback()) == "SparsityCallback()"
    assert repr(SparsityCallback(penalty=L1Half(0.5))) == (
        "SparsityCallback(penalty=L1Half(epsilon=0.5))"
    )
