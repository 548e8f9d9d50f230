"""One fit from dense to small, and what it leaves behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from deap import base
from lightning.pytorch.callbacks import EarlyStopping
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_slimga import GeneticPruneCallback, PruningPlan, SparsityCallback
from lightning_slimga.callbacks.prune import survey
from tests.fits.small_fit import (
    WIDTHS,
    Net,
    assert_equal,
    assert_pruned,
    fitted,
    prune,
    trainer,
    widths,
)


def test_a_fit_ends_with_a_small_network_within_its_budget() -> None:
    callback = prune(budget={"macs": 0.5, "params": 500})
    fit, module = fitted(Net(), callback)
    assert_pruned(fit, module)
    with FlopCounterMode(display=False) as small:
        module.eval()(torch.zeros(1, 2, 6, 6))
    with FlopCounterMode(display=False) as full:
        Net().eval()(torch.zeros(1, 2, 6, 6))
    assert small.get_total_flops() <= 0.5 * full.get_total_flops()
    assert sum(p.numel() for p in module.parameters()) <= 500


def test_plan_history_and_timings() -> None:
    callback = prune()
    assert (callback.plan, callback.history, callback.timings) == (None, [], {})
    _, module = fitted(Net(), callback)

    assert isinstance(callback.plan, PruningPlan)
    again = Net()
    callback.plan.apply(again)
    assert widths(again) == widths(module)
    assert [entry["generation"] for entry in callback.history] == [
        *range(1, 1 + len(callback.history))
    ]
    assert 4 <= callback.history[-1]["evaluations"] <= 8
    assert callback.history[-1]["widths"] == list(widths(module))
    json.dumps(callback.history)
    assert set(callback.timings) >= {"preparation", "search", "forward", "surgery"}
    assert all(seconds > 0 for seconds in callback.timings.values())


@pytest.mark.parametrize("limits", [{"max_evaluations": 3}, {"max_time": 1e-9}, {"generations": 1}])
def test_limits_of_the_search(limits: dict[str, Any]) -> None:
    callback = prune(**limits)
    fit, module = fitted(Net(), callback)
    assert callback.history[-1]["evaluations"] <= 4
    assert_pruned(fit, module)


@pytest.mark.parametrize("options", [{}, {"pick": -1}])
def test_operators_of_the_user_breed_in_the_fit(options: dict[str, Any], tmp_path: Path) -> None:
    """A mutation that keeps everything: after repair the children are the widest there are."""
    given = []

    def everything(children: Any, space: Any, rng: Any) -> Any:
        given.append(children.shape)
        return np.ones_like(children)

    toolbox = base.Toolbox()
    toolbox.register("mutate", everything)
    callback = prune(toolbox=toolbox, report=True, **options)
    fit, module = fitted(Net(), callback, default_root_dir=tmp_path, logger=False)
    assert set(given) == {(4, sum(WIDTHS))}
    assert_pruned(fit, module)
    (report,) = tmp_path.rglob("report.json")
    assert json.loads(report.read_text())["settings"]["toolbox"] == ["mutate"]


def test_layers_keep_what_they_are_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = []

    class Seen(survey.ChannelSurgery):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            allowed.append((self.widths.min_channels, self.widths.round_to))

    monkeypatch.setattr(survey, "ChannelSurgery", Seen)
    _, module = fitted(Net(), prune(round_to=4, min_channels=4, budget={"params": 0.5}))
    assert all(width % 4 == 0 and width >= 4 for width in widths(module))
    assert allowed == [(4, 4)]
    _, module = fitted(Net(), prune(ignore="body.0"))
    assert widths(module)[0] == WIDTHS[0]
    assert widths(module)[1] < WIDTHS[1]


class NoScale(Net):
    """No normalisation, so nowhere a γ."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 3, bias=False), nn.ReLU()
        )


def test_a_network_without_scaling_factors() -> None:
    callback, module = prune(), NoScale()
    fitted(module, callback)
    first, second = module.body[0].out_channels, module.body[2].out_channels
    assert first + second < 20
    assert callback.plan.summary["channels"] == [20, first + second]


class Hears(pl.Callback):
    """Remembers the surgery, and how the network looked then."""

    def on_surgery(self, trainer: Any, pl_module: Any, plan: Any) -> None:
        self.plan, self.widths = plan, widths(pl_module)


@pytest.mark.parametrize("until_surgery", [True, False])
def test_sparse_training_stops_at_surgery(until_surgery: bool) -> None:
    sparsity, hears, callback = SparsityCallback(0.1, until_surgery=until_surgery), Hears(), prune()
    fit, module = fitted(Net(), sparsity, hears, callback)
    assert_pruned(fit, module)
    assert sparsity.active is not until_surgery
    assert hears.plan is callback.plan
    assert hears.widths == widths(module)


def test_a_budget_met_already_stops_nothing() -> None:
    sparsity, hears = SparsityCallback(0.1), Hears()
    with pytest.warns(UserWarning, match="meets the budget .* already: nothing was pruned"):
        _, module = fitted(Net(), sparsity, hears, prune(budget={"params": 10**6}))
    assert sparsity.active
    assert not hasattr(hears, "plan")
    assert widths(module) == WIDTHS


class NotOneByOne(Net):
    """Refuses a single sample, as code with a stray `squeeze()` does."""

    def forward(self, x: Any) -> Any:
        if len(x) == 1:
            raise RuntimeError("not a batch")
        return super().forward(x)


def test_a_network_that_cannot_run_on_one_sample() -> None:
    fit, module = fitted(NotOneByOne(), prune())
    assert_pruned(fit, module)


class FixedBatch(Net):
    """Only takes the batch sizes of its loaders."""

    def forward(self, x: Any) -> Any:
        if len(x) not in (12, 20):
            raise RuntimeError("another batch size")
        return super().forward(x)


def test_a_network_that_cannot_run_on_fewer_samples() -> None:
    callback = prune(budget={"macs": 2000})
    fit, module = fitted(FixedBatch(), callback)
    assert_pruned(fit, module)
    with FlopCounterMode(display=False) as small:
        module.eval()(torch.zeros(12, 2, 6, 6))
    assert small.get_total_flops() / 2 / 12 <= 2000


def test_a_fit_after_a_fit_goes_on_small() -> None:
    callback, module = prune(), Net()
    fit, _ = fitted(module, callback)
    first, plan = widths(module), callback.plan
    fit.fit_loop.max_epochs = 4
    fit.fit(module)
    assert fit.current_epoch == 4
    assert widths(module) == first
    assert callback.plan is plan
    assert_pruned(fit, module)


def test_another_fit_prunes_another_module() -> None:
    """A callback and a Trainer used again: the second module is dense."""
    callback = prune()
    fitted(Net(), callback)
    other = Net()
    other_trainer = trainer(callback)
    other_trainer.fit(other)
    assert_pruned(other_trainer, other)


def test_validation_and_test_after_the_fit() -> None:
    fit, module = fitted(Net(), prune())
    weights = {k: v.clone() for k, v in module.state_dict().items()}
    logged = fit.callback_metrics["val_loss"]
    assert fit.validate(module, verbose=False)[0]["val_loss"] == pytest.approx(float(logged))
    fit.test(module, verbose=False)
    assert len(fit.predict(module)[0]) == 20
    assert all(torch.equal(v, weights[k]) for k, v in module.state_dict().items())


def test_a_fit_that_ends_early_says_so() -> None:
    stop = EarlyStopping("val_loss", patience=1, stopping_threshold=1e6)
    with pytest.warns(UserWarning, match=r"ended after 1 epochs.*min_epochs=3"):
        _, module = fitted(Net(), stop, prune(prune_epoch=2), max_epochs=4)
    assert widths(module) == WIDTHS


def test_min_epochs_keeps_it_from_ending_early() -> None:
    stop = EarlyStopping("val_loss", patience=1, stopping_threshold=1e6)
    fit, module = fitted(Net(), stop, prune(prune_epoch=2), max_epochs=4, min_epochs=3)
    assert_pruned(fit, module)


def test_the_same_seed_gives_the_same_network() -> None:
    _, one = fitted(Net(), prune(seed=5))
    _, other = fitted(Net(), prune(seed=5))
    assert_equal(one, other)


def test_the_state_is_known_by_a_fixed_name() -> None:
    assert prune().state_key == GeneticPruneCallback.__name__


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ({}, "budget={'macs': 0.5}, prune_epoch=1, population_size=4, generations=2,"),
        ({"prune_epoch": None, "prune_epochs": [1, 3], "budget": [{"macs": 0.5}, {"macs": 0.3}]},
         "budget=[{'macs': 0.5}, {'macs': 0.3}], prune_epochs=[1, 3], population_size=4,"),
        ({"ignore": "head.*", "finetune_lr": "rewarm", "seed": 0, "max_drop": 0.5},
         "recalibration_batches=1, ignore=('head.*',), max_drop=0.5, finetune_lr='rewarm', report"),
    ],
)  # fmt: skip
def test_what_is_not_the_default_is_shown(arguments: dict[str, Any], shown: str) -> None:
    text = repr(prune(**arguments))
    assert text.startswith("GeneticPruneCallback('val_loss', mode='min', budget=")
    assert shown in text
    assert "seed" not in text


def test_where_it_stands_is_shown() -> None:
    callback = prune()
    assert repr(callback).endswith("report=False): 0 of 1 done")
    fitted(Net(), callback)
    assert repr(callback).endswith("report=False): 1 of 1 done")
