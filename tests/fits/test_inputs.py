"""What the callback refuses, when, and in which words."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from torch import nn

from lightning_slimga import GeneticPruneCallback
from lightning_slimga.callbacks.prune.candidates import CandidateEvaluation
from tests.fits.small_fit import (
    WIDTHS,
    Net,
    assert_pruned,
    fitted,
    prune,
    trainer,
    when_resumed,
    widths,
)

pytestmark = when_resumed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"monitor": ""}, "`monitor` to be a metric's name, but got ''"),
        ({"monitor": None}, "`monitor` to be a metric's name, but got None"),
        ({"mode": "best"}, "`mode` to be 'min' or 'max', but got 'best'"),
        ({"mode": None}, "`mode` to be 'min' or 'max', but got None"),
        ({"prune_epoch": 0}, "`prune_epoch` to be a whole number of at least 1, but got 0"),
        ({"prune_epoch": 1.5}, "`prune_epoch` to be a whole number of at least 1, but got 1.5"),
        ({"prune_epoch": True}, "`prune_epoch` to be a whole number of at least 1, but got True"),
        ({"population_size": 1}, "`population_size` to be a whole number of at least 2, but got 1"),
        ({"generations": 0}, "`generations` to be a whole number of at least 1, but got 0"),
        ({"recalibration_batches": -1}, "`recalibration_batches` to be .* at least 0, but got -1"),
        ({"min_channels": 0}, "`min_channels` to be a whole number of at least 1, but got 0"),
        ({"round_to": 0}, "`round_to` to be a whole number of at least 1, but got 0"),
        ({"max_evaluations": 0}, "`max_evaluations` to be .* at least 1 or None, but got 0"),
        ({"max_time": -1.0}, "`max_time` to be a positive number of seconds or None, but got -1.0"),
        ({"patience": 0}, "`patience` to be a whole number of at least 1 or None, but got 0"),
        ({"seed": -1}, "`seed` to be a whole number of at least 0 .*, but got -1"),
        (
            {"seed": 2**64},
            r"`seed` to be a whole number of at least 0 and below 2\*\*64, but got 18",
        ),
        ({"fitness_batches": 0}, "`fitness_batches` to be None, an int >= 1 or a float in"),
        ({"fitness_batches": 1.5}, "`fitness_batches` to be None, an int >= 1 or a float in"),
        (
            {"budget": {"flops": 0.5}},
            "`budget` to be limits of some of macs, params.*, but got 'flops'",
        ),
        ({"budget": {}}, "`budget` to be at least one limit"),
        ({"budget": {"macs": 0}}, r"`budget\['macs'\]` to be a fraction in \(0, 1\]"),
        ({"budget": {"macs": 1.5}}, r"`budget\['macs'\]` to be .* whole number above 1"),
    ],
)
def test_an_argument_out_of_its_range_is_refused_at_once(
    arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        prune(**arguments)


@pytest.mark.parametrize("missing", ["monitor", "mode", "budget", "prune_epoch"])
def test_what_nobody_can_guess_has_no_default(missing: str) -> None:
    given = {"monitor": "val_acc", "mode": "max", "budget": {"macs": 0.5}, "prune_epoch": 1}
    del given[missing]
    with pytest.raises(TypeError, match=missing):
        GeneticPruneCallback(**given)


@pytest.mark.parametrize("budget", [0.5, [("macs", 0.5)], None])
def test_a_budget_is_a_mapping(budget: Any) -> None:
    with pytest.raises(TypeError, match="`budget` to be a mapping"):
        prune(budget=budget)


@pytest.mark.parametrize("epoch", [2, 3])
def test_the_search_must_come_before_the_last_epoch(epoch: int) -> None:
    module = Net()
    with pytest.raises(
        MisconfigurationException, match=f"`prune_epoch` to be below `max_epochs=2`.* got {epoch}"
    ):
        fitted(module, prune(prune_epoch=epoch))
    assert module.trainer.global_step == 0


@pytest.fixture
def no_candidate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is refused must be refused before a candidate is evaluated."""

    def fail(*_: Any) -> float:
        raise AssertionError("a candidate was evaluated")

    monkeypatch.setattr(CandidateEvaluation, "_measure", fail)


def test_a_monitor_that_is_never_logged(no_candidate: None) -> None:
    module = Net()
    with pytest.raises(
        MisconfigurationException,
        match="`monitor` to be a metric that validation logs, but got 'val_akk'; logged was:"
        " 'val_acc', 'val_loss'",
    ):
        fitted(module, prune(monitor="val_akk"))
    assert widths(module) == WIDTHS


class NoValidationStep(Net):
    validation_step = pl.LightningModule.validation_step


class NoValidationLoader(Net):
    val_dataloader = pl.LightningModule.val_dataloader


@pytest.mark.filterwarnings("ignore:You (passed in|defined) a `val")
@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (NoValidationStep, {}, "`NoValidationStep` has no `validation_step`"),
        (NoValidationLoader, {}, "there is no validation loader: pass `val_dataloaders`"),
        (Net, {"limit_val_batches": 0}, r"switched off by `Trainer\(limit_val_batches=0\)`"),
    ],
)
def test_a_fit_without_validation_is_refused_before_its_first_step(
    make: type[Net], arguments: dict[str, Any], message: str
) -> None:
    module = make()
    with pytest.raises(MisconfigurationException, match=message):
        fitted(module, prune(), **arguments)
    assert module.trainer.global_step == 0


def test_a_fit_that_has_nothing_more_to_prune_needs_no_validation(tmp_path: Path) -> None:
    """What is refused at the start of a fit must be needed by it: here the search is over."""
    _, module = fitted(Net(), prune(), ModelCheckpoint(tmp_path, save_last=True))
    fit = trainer(prune(ignore="gone"), max_epochs=3, limit_val_batches=0)
    again = Net()
    fit.fit(again, ckpt_path=tmp_path / "last.ckpt")
    assert fit.current_epoch == 3
    assert widths(again) == widths(module)


class NothingToRemove(Net):
    """One layer, from input to output."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential()
        self.head = nn.Linear(2, 4)


def test_nothing_can_be_removed(no_candidate: None) -> None:
    with pytest.raises(
        MisconfigurationException, match=r"no channel that can be removed:(.|\n)*head.weight: .*\w"
    ):
        fitted(NothingToRemove(), prune())


def test_everything_is_ignored(no_candidate: None) -> None:
    with pytest.raises(
        MisconfigurationException, match=r"no channel that can be removed:(.|\n)*pattern 'body\.\*'"
    ):
        fitted(Net(), prune(ignore="body.*"))


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*TracerWarning")
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda net: torch.jit.script(nn.Linear(2, 2)), "TorchScript, .* Pass what it was made of"),
        (lambda net: torch.jit.trace(nn.ReLU(), torch.zeros(1)), "TorchScript, which cannot"),
        (
            lambda net: torch.export.export(net.head, (torch.zeros(2, 12),)).module(),
            r"the result of torch\.export, .* Pass what was exported",
        ),
    ],
)
def test_a_part_that_cannot_be_cut_is_told_before_the_first_step(make: Any, said: str) -> None:
    module = Net()
    module.aside = make(module)
    with pytest.raises(TypeError, match=f"got at 'aside' {said}"):
        fitted(module, prune())
    assert module.trainer.global_step == 0


def test_an_ignored_module_that_does_not_exist_is_told_before_the_first_step() -> None:
    module = Net()
    with pytest.raises(ValueError, match=r"`ignore` to hold patterns .* 'tail' matches none of"):
        fitted(module, prune(ignore=["body.*", "tail"]))
    assert module.trainer.global_step == 0


@pytest.mark.parametrize(
    ("budget", "smallest"),
    [
        # one channel per layer: 9 multiplications for 2 channels at 16 places, 9 at 4, and 4
        ({"macs": 0.01}, 9 * 2 * 16 + 9 * 4 + 4),
        ({"params": 30}, (18 + 1) + 2 + 9 + 2 + (4 + 4)),
        ({"macs": 0.9, "params": 39}, 40),
    ],
)
def test_an_impossible_budget_names_the_smallest_reachable(
    budget: dict[str, float], smallest: int, no_candidate: None
) -> None:
    name = list(budget)[-1]
    module = Net()
    with pytest.raises(
        MisconfigurationException, match=f"budget `{name}` to be reachable, .* has {smallest}\\."
    ):
        fitted(module, prune(budget=budget))
    assert widths(module) == WIDTHS


class SometimesNan(Net):
    """NaN for networks with an odd number of channels."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self(batch[0])
        channels = sum(widths(self))
        self.log("val_loss", torch.nan if channels % 2 else float(channels))


def test_nan_counts_as_worst_and_is_said_once() -> None:
    callback, module = prune(population_size=8), SometimesNan()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit, _ = fitted(module, callback)
    said = [w for w in caught if "of a candidate is NaN; it counts as the worst" in str(w.message)]
    assert len(said) == 1
    assert sum(entry["failed"] for entry in callback.history) > 1
    assert sum(widths(module)) % 2 == 0
    assert_pruned(fit, module)


class NoModuleCalled(Net):
    """Computes with its parameters, but calls no module."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.head.weight.sum()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.head.weight.sum())


def test_a_network_that_is_never_called(no_candidate: None) -> None:
    with pytest.raises(MisconfigurationException, match="neither calls a module with parameters"):
        fitted(NoModuleCalled(), prune())


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (Net, {"monitor": "val_akk"}, "`monitor` to be a metric that validation logs"),
        (Net, {"budget": {"macs": 0.01}}, "budget `macs` to be reachable"),
        (Net, {"round_to": 16}, "budget `macs` to be reachable"),
        (Net, {"min_channels": 50}, "budget `macs` to be reachable"),
        (Net, {"pick": 0.01}, "`pick` to be within reach"),
        (NothingToRemove, {}, "no channel that can be removed"),
        (NoModuleCalled, {}, "neither calls a module with parameters"),
        (Net, {}, None),
    ],
)
def test_a_short_trial_finds_what_a_long_fit_would_find_late(
    make: type[Net], arguments: dict[str, Any], message: str | None
) -> None:
    """The one that README names; `fast_dev_run` never comes to a search."""
    fitted(make(), prune(prune_epoch=1, **arguments), fast_dev_run=True)
    callback = prune(**{**arguments, "prune_epoch": 1, "max_evaluations": 2})
    trial: dict[str, Any] = {"max_epochs": 2, "limit_train_batches": 2, "limit_val_batches": 2}
    raises = pytest.raises(MisconfigurationException, match=message) if message else nullcontext()
    with raises:
        fitted(make(), callback, **trial)
    assert (callback.plan is None) is (message is not None)


@pytest.mark.parametrize("strategy", [FSDPStrategy, DeepSpeedStrategy])
def test_a_strategy_that_owns_the_parameters(strategy: type[Any]) -> None:
    fit, module = trainer(), Net()
    fit.strategy.__class__ = type(strategy.__name__, (type(fit.strategy),), {})
    with pytest.raises(MisconfigurationException, match=f"cannot work with `{strategy.__name__}`"):
        prune().setup(fit, module, "fit")
