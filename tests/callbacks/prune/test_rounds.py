"""Several rounds of search, surgery and fine-tuning in one fit."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import callbacks as of_lightning
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, OnExceptionCheckpoint
from torch.utils.flop_counter import FlopCounterMode

from lightning_slimga import GeneticPruneCallback, SparsityCallback, load_pruned
from lightning_slimga.callbacks.prune.candidates import CandidateEvaluation
from tests.fits.small_fit import (
    WIDTHS,
    Net,
    assert_equal,
    assert_optimized,
    fitted,
    lightning_2_6,
    prune,
    trainer,
    when_resumed,
    widths,
)

pytestmark = when_resumed

BUDGETS = [{"macs": 0.7}, {"macs": 0.4}]


def rounds(**arguments: Any) -> GeneticPruneCallback:
    defaults = {"prune_epoch": None, "prune_epochs": [1, 3], "budget": BUDGETS}
    return prune(**{**defaults, **arguments})


def macs(module: Any) -> float:
    """Multiply-adds for one image, by another's count."""
    small = copy.deepcopy(module).eval()
    with FlopCounterMode(display=False) as counter:
        small(torch.zeros(1, 2, 6, 6))
    return counter.get_total_flops() / 2


class Hears(pl.Callback):
    """Remembers the surgeries and what stood after them."""

    def __init__(self) -> None:
        self.plans: list[Any] = []
        self.macs: list[float] = []

    def on_surgery(self, trainer: Any, pl_module: Any, plan: Any) -> None:
        assert_optimized(trainer, pl_module)
        self.plans.append(plan)
        self.macs.append(macs(pl_module))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Four epochs, two rounds, a checkpoint of each epoch."""
    folder = tmp_path_factory.mktemp("rounds")
    every = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1, save_last=True)
    hears, callback, module = Hears(), rounds(), Net(optimizer="adamw")
    fit, _ = fitted(module, every, hears, callback, max_epochs=4)
    assert_optimized(fit, module)
    return {"folder": folder, "module": module, "callback": callback, "hears": hears}


def test_each_budget_is_a_share_of_the_dense_network(run: dict[str, Any]) -> None:
    full, callback = macs(Net()), run["callback"]
    first, second = run["hears"].macs
    assert 0.5 * full < first <= 0.7 * full
    assert 0.25 * full < second <= 0.4 * full
    assert second == macs(run["module"])
    assert callback.plans == run["hears"].plans
    assert [plan.summary["macs"] for plan in callback.plans] == [[full, first], [first, second]]


def test_one_plan_rebuilds_the_network(run: dict[str, Any]) -> None:
    plan, small = run["callback"].plan, Net()
    plan.apply(small)
    assert widths(small) == widths(run["module"])
    assert plan.summary["macs"] == [macs(Net()), macs(small)]
    assert plan.summary["channels"] == [sum(WIDTHS), sum(widths(small))]
    assert plan.summary["params"] == [
        sum(p.numel() for p in net.parameters()) for net in (Net(), small)
    ]


def test_the_history_tells_the_rounds(run: dict[str, Any]) -> None:
    history = run["callback"].history
    told = [(entry["round"], entry["generation"]) for entry in history]
    assert told == sorted(set(told))
    assert {number for number, _ in told} == {1, 2}


@pytest.mark.parametrize("epoch", [0, 1, 2, 3])
def test_load_pruned(run: dict[str, Any], epoch: int) -> None:
    module = load_pruned(Net, run["folder"] / f"epoch={epoch}.ckpt", optimizer="adamw")
    costs = [macs(Net()), *run["hears"].macs]
    assert macs(module) == costs[(epoch + 1) // 2]
    if epoch == 3:
        assert_equal(module, run["module"])


@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_resuming_ends_where_the_uninterrupted_fit_ends(run: dict[str, Any], epoch: int) -> None:
    """Right before round 1, between the rounds, and right before round 2."""
    callback, module = rounds(), Net(optimizer="adamw")
    pl.seed_everything(99, verbose=False)
    fit = trainer(callback, max_epochs=4)
    fit.fit(module, ckpt_path=run["folder"] / f"epoch={epoch}.ckpt")
    assert_equal(module, run["module"])
    assert_optimized(fit, module)
    assert callback.plan.state_dict() == run["callback"].plan.state_dict()
    assert len(callback.plans) == 2
    assert len(callback.history) == len(run["callback"].history)


def test_a_file_of_an_earlier_round_is_refused_by_the_smaller_module(run: dict[str, Any]) -> None:
    small = load_pruned(Net, run["folder"] / "last.ckpt")
    with pytest.raises(ValueError, match=r"one of an earlier round.* has been pruned.* freshly"):
        trainer(rounds()).test(small, ckpt_path=run["folder"] / "epoch=1.ckpt", verbose=False)
    fresh = Net()
    trainer(rounds()).test(fresh, ckpt_path=run["folder"] / "epoch=1.ckpt", verbose=False)
    assert macs(fresh) == run["hears"].macs[0]


class StepError(Exception):
    """What the user's code raises."""


class Evaluations:
    """Counts the candidates, and raises in the middle of one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.masks: list[bytes] = []
        self.fail_at = -1
        original = CandidateEvaluation.fitness

        def fitness(candidates: CandidateEvaluation, mask: Any) -> float:
            self.masks.append(mask.tobytes())
            if len(self.masks) == self.fail_at:
                raise StepError
            return original(candidates, mask)

        monkeypatch.setattr(CandidateEvaluation, "fitness", fitness)


@pytest.mark.parametrize("on_exception", [False, True], ids=["search file", "checkpoint"])
def test_interrupted_in_the_middle_of_the_second_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_exception: bool
) -> None:
    def fit(folder: Path, path: Any = None) -> Any:
        pl.seed_everything(7, verbose=False)
        every = ModelCheckpoint(folder, save_last=True)
        if on_exception:
            every = OnExceptionCheckpoint(folder)
        module = Net()
        trainer(every, SparsityCallback(0.1), rounds(), max_epochs=4).fit(module, ckpt_path=path)
        return module

    evaluations = Evaluations(monkeypatch)
    whole = fit(tmp_path / "whole")
    count = len(evaluations.masks)
    evaluations.masks.clear()
    evaluations.fail_at = count - 1
    with pytest.raises(StepError):
        fit(tmp_path / "broken")
    name = OnExceptionCheckpoint(tmp_path).ckpt_path if on_exception else "last.ckpt"
    path = tmp_path / "broken" / Path(name).name
    assert len(torch.load(path, weights_only=True)["lightning_slimga"]["plans"]) == 1
    again = tmp_path / ("other" if on_exception else "broken")
    resumed = fit(again, path)
    assert_equal(resumed, whole)
    assert len(evaluations.masks) == count + 1  # only the one that failed was evaluated twice
    assert not list(again.glob("pruning_search*"))


@lightning_2_6
def test_averaged_copies_are_cut_in_every_round(tmp_path: Path) -> None:
    def fit(path: Any = None) -> tuple[Any, Any]:
        pl.seed_everything(7, verbose=False)
        every = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        module, average = Net(), of_lightning.EMAWeightAveraging(decay=0.5)
        trainer(every, average, rounds(), max_epochs=4).fit(module, ckpt_path=path)
        return module, average

    module, average = fit()
    assert widths(average._average_model.module) == widths(module)
    again, average = fit(tmp_path / "epoch=1.ckpt")
    assert widths(average._average_model.module) == widths(again)
    assert_equal(again, module)


@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
def test_sparse_training_goes_on_until_the_last_surgery(first: bool) -> None:
    class Looks(pl.Callback):
        def __init__(self) -> None:
            self.pulled: list[bool] = []

        def on_train_batch_end(self, *_: Any) -> None:
            self.pulled.append(sparsity.active and sparsity._pull is not None)

    sparsity, looks = SparsityCallback(0.1), Looks()
    callbacks = [sparsity, rounds()] if first else [rounds(), sparsity]
    fitted(Net(), *callbacks, looks, max_epochs=4)
    assert looks.pulled == [True] * 6 + [False] * 2  # two batches an epoch


def test_sparse_training_pulls_at_what_is_left() -> None:
    """A penalty between the rounds makes γ smaller than no penalty does."""

    class Gammas(pl.Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            if trainer.current_epoch == 2:
                self.sum = sum(pl_module.body[i].weight.abs().mean().item() for i in (1, 4))

    sums = []
    for callbacks in ([SparsityCallback(0.1)], []):
        gammas = Gammas()
        fitted(Net(), *callbacks, rounds(), gammas, max_epochs=4)
        sums.append(gammas.sum)
    assert sums[0] < sums[1] - 0.05


def test_a_strength_that_finds_itself_begins_anew_after_each_surgery() -> None:
    sparsity = SparsityCallback("auto")
    with pytest.warns(UserWarning, match="with .* of γ below 0.01; wanted were 50%") as caught:
        fitted(Net(), sparsity, rounds(), max_epochs=4)
    said = [str(one.message) for one in caught if "wanted were" in str(one.message)]
    assert len(said) == 2
    assert said[0].startswith("Channels were removed with")
    assert said[1].startswith("Sparse training ended with")
    assert sparsity._schedule._goal == 3


def test_a_round_whose_budget_is_met_is_skipped() -> None:
    budgets = [{"macs": 0.4}, {"params": 0.7}]
    sparsity, callback, hears = SparsityCallback(0.1), rounds(budget=budgets), Hears()
    with pytest.warns(UserWarning, match="meets the budget .*0.7.* already: nothing was pruned"):
        fit, module = fitted(Net(), sparsity, callback, hears, max_epochs=4)
    assert len(hears.plans) == len(callback.plans) == 1
    assert 0.25 * macs(Net()) < macs(module) <= 0.4 * macs(Net())
    assert_optimized(fit, module)
    assert not sparsity.active
    assert {entry["round"] for entry in callback.history} == {1}


def test_absolute_budgets_and_other_names_in_other_rounds() -> None:
    callback = rounds(budget=[{"params": 0.8}, {"params": 0.5, "macs": 2000}])
    _, module = fitted(Net(), callback, max_epochs=4)
    full = sum(p.numel() for p in Net().parameters())
    assert sum(p.numel() for p in module.parameters()) <= 0.5 * full
    assert macs(module) <= 2000


@pytest.mark.filterwarnings("ignore:.*Matplotlib")
def test_a_report_for_each_round(tmp_path: Path) -> None:
    callback = rounds(report=True)
    fitted(Net(), callback, max_epochs=4, default_root_dir=tmp_path)
    folders = [path.name for path in sorted(tmp_path.glob("pruning_report*"))]
    assert folders == ["pruning_report_1", "pruning_report_2"]


def test_a_fit_that_ends_between_the_rounds_says_so() -> None:
    stop = EarlyStopping("val_loss", patience=1, stopping_threshold=1e6)
    with pytest.warns(UserWarning, match=r"before `prune_epochs=3`: 1 of 2 rounds.*min_epochs=4"):
        fitted(Net(), rounds(), stop, max_epochs=4, min_epochs=2)


def test_another_fit_of_another_module_goes_through_all_rounds() -> None:
    callback = rounds()
    fitted(Net(), callback, max_epochs=4)
    _, other = fitted(Net(), callback, max_epochs=4)
    assert len(callback.plans) == 2
    assert macs(other) <= 0.4 * macs(Net())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"prune_epoch": 1}, TypeError, "`prune_epoch` .* or `prune_epochs` .* but got both"),
        (
            {"prune_epochs": None},
            TypeError,
            "`prune_epoch` .* or `prune_epochs` .* but got neither",
        ),
        ({"prune_epochs": []}, ValueError, "`prune_epochs` to be a rising list"),
        ({"prune_epochs": [3, 1]}, ValueError, "`prune_epochs` to be a rising list"),
        ({"prune_epochs": [2, 2]}, ValueError, "`prune_epochs` to be a rising list"),
        ({"prune_epochs": [0, 2]}, ValueError, "`prune_epochs` to be a whole number of at least 1"),
        ({"prune_epochs": 3}, ValueError, "`prune_epochs` to be a rising list .* but got 3"),
        ({"budget": {"macs": 0.5}}, ValueError, "`budget` to be a list of 2 mappings"),
        ({"budget": BUDGETS[:1]}, ValueError, "`budget` to be one mapping, or a list of 2"),
        ({"budget": [{"macs": 0.5}, {"flops": 1}]}, ValueError, "but got 'flops'"),
        ({"budget": [{"macs": 0.5}, 0.4]}, TypeError, "`budget` to be a mapping"),
        ({"budget": BUDGETS[::-1]}, ValueError, "`budget` to be smaller .* round 2 would have"),
        ({"budget": [{"macs": 0.5}] * 2}, ValueError, "`budget` to be smaller in every round"),
        ({"budget": [{"macs": 9}, {"macs": 9}]}, ValueError, "`budget` to be smaller in every"),
        (
            {"budget": [{"latency_ms": 0.5}, {"latency_ms": 2}]},
            ValueError,
            "`budget` to be smaller in every round, but round 2 would have nothing to do",
        ),
        (
            {
                "prune_epochs": [1, 2, 3],
                "budget": [{"macs": 0.5}, {"params": 0.3}, {"params": 0.4, "macs": 0.6}],
            },
            ValueError,
            "`budget` to be smaller in every round, but round 3 would have nothing to do",
        ),
        ({"pick": 0.5}, ValueError, "`pick` to be None, 'knee' or an int with several .* got 0.5"),
        ({"pick": {"macs": 0.3}}, ValueError, "`pick` to be None, 'knee' or an int with several"),
    ],
)
def test_rounds_that_make_no_sense(arguments: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        rounds(**arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"budget": [{"macs": 0.5}, {"params": 0.6}]},
        {"budget": [{"macs": 0.5}, {"macs": 0.6, "params": 0.4}]},
        {"budget": [{"macs": 0.5}, {"macs": 5000}]},  # who knows which of them is less
        {"budget": [{"macs": 0.5}, {"macs": 0.5}], "pick": "knee"},  # each may stop below it
        {"budget": [{"macs": 0.5}, {"macs": 0.5}], "pick": 2},
    ],
)
def test_rounds_that_may_make_sense(arguments: Any) -> None:
    assert rounds(**arguments).prune_epochs == (1, 3)


def test_the_last_round_must_come_before_the_last_epoch() -> None:
    with pytest.raises(
        MisconfigurationException, match=r"`prune_epochs` to be below `max_epochs=3`.* got 3"
    ):
        fitted(Net(), rounds(), max_epochs=3)


def test_one_round_may_be_written_as_a_list() -> None:
    callback = rounds(prune_epochs=[1], budget=[{"macs": 0.5}])
    _, module = fitted(Net(), callback)
    assert callback.plan is callback.plans[0]
    assert macs(module) <= 0.5 * macs(Net())
