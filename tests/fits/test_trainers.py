"""Whatever the Trainer is told, the search comes at its epoch and the network ends small."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from tests.fits.small_fit import (
    WIDTHS,
    Net,
    assert_pruned,
    data,
    fitted,
    lightning_2_6,
    prune,
    trainer,
    widths,
)


class Surgery(pl.Callback):
    """When the surgery came."""

    def on_surgery(self, trainer: Any, pl_module: Any, plan: Any) -> None:
        self.epoch, self.step = trainer.current_epoch, trainer.global_step


@pytest.mark.filterwarnings("ignore:`max_epochs` was not set")
@pytest.mark.filterwarnings("ignore:You .* overfit")
@pytest.mark.parametrize(
    ("arguments", "epoch", "step"),
    [
        ({"num_sanity_val_steps": 2}, 1, 2),
        ({"num_sanity_val_steps": -1}, 1, 2),
        ({"limit_train_batches": 1}, 1, 1),
        ({"limit_train_batches": 0.5, "limit_val_batches": 1}, 1, 1),
        ({"limit_val_batches": 1.0}, 1, 2),
        ({"val_check_interval": 1}, 1, 2),
        ({"val_check_interval": 0.5}, 1, 2),
        ({"val_check_interval": 3, "check_val_every_n_epoch": None, "max_epochs": 4}, 1, 2),
        ({"check_val_every_n_epoch": 5}, 1, 2),
        ({"check_val_every_n_epoch": 5, "num_sanity_val_steps": 1}, 1, 2),
        ({"max_epochs": -1, "max_steps": 5}, 1, 2),
        ({"max_epochs": None, "max_steps": 5}, 1, 2),
        ({"max_epochs": 3, "max_steps": 4}, 1, 2),
        ({"overfit_batches": 1}, 1, 1),
        ({"reload_dataloaders_every_n_epochs": 1}, 1, 2),
        ({"accumulate_grad_batches": 2}, 1, 1),
        ({"inference_mode": False}, 1, 2),
        ({"detect_anomaly": True}, 1, 2),
        ({"deterministic": True}, 1, 2),
        ({"profiler": "simple"}, 1, 2),
        ({"log_every_n_steps": 1, "max_epochs": 3}, 1, 2),
        ({"min_epochs": 3, "max_epochs": 3}, 1, 2),
        pytest.param({"enable_autolog_hparams": False}, 1, 2, marks=lightning_2_6),
    ],
    ids=str,
)
def test_arguments_of_the_trainer(arguments: dict[str, Any], epoch: int, step: int) -> None:
    surgery = Surgery()
    fit, module = fitted(Net(), surgery, prune(), **arguments)
    assert (surgery.epoch, surgery.step) == (epoch, step)
    assert fit.global_step > step
    assert_pruned(fit, module)


def test_a_later_epoch() -> None:
    surgery = Surgery()
    fit, module = fitted(Net(), surgery, prune(prune_epoch=3), max_epochs=4)
    assert (surgery.epoch, surgery.step) == (3, 6)
    assert_pruned(fit, module)


@pytest.mark.parametrize("steps", [True, 1, 3])
def test_a_trial_run_is_not_pruned(steps: Any) -> None:
    """`fast_dev_run` looks whether everything runs; there is one epoch and nothing to search in."""
    fit, module = fitted(Net(), prune(prune_epoch=5), fast_dev_run=steps)
    assert widths(module) == WIDTHS
    assert fit.current_epoch == 1


def test_a_fit_that_stops_by_steps_before_the_search() -> None:
    with (
        pytest.warns(UserWarning, match=r"`max_steps=3` will end the fit before `prune_epoch=2`"),
        pytest.warns(UserWarning, match=r"`prune_epoch=2`: nothing.*`max_steps=3` has ended it"),
    ):
        _, module = fitted(Net(), prune(prune_epoch=2), max_epochs=-1, max_steps=3)
    assert widths(module) == WIDTHS


def test_a_trainer_that_logs_nothing() -> None:
    with pytest.raises(Exception, match=r"barebones=True.* drops all that is logged; leave that"):
        fitted(Net(), prune(), barebones=True, logger=None)


class Counted(Net):
    """Counts how often the loaders are made."""

    def __init__(self) -> None:
        super().__init__()
        self.made = [0, 0]

    def train_dataloader(self) -> Any:
        self.made[0] += 1
        return super().train_dataloader()

    def val_dataloader(self) -> Any:
        self.made[1] += 1
        return super().val_dataloader()


@pytest.mark.parametrize(("every", "expected"), [(0, [1, 1]), (1, [3, 3])])
def test_loaders_are_made_as_often_as_without_a_search(every: int, expected: list[int]) -> None:
    module = Counted()
    fit, _ = fitted(module, prune(), max_epochs=3, reload_dataloaders_every_n_epochs=every)
    assert module.made == expected
    assert_pruned(fit, module)


class SeveralLoaders(Net):
    def __init__(self, add_dataloader_idx: bool = True) -> None:
        super().__init__()
        self.add = add_dataloader_idx

    def val_dataloader(self) -> Any:
        return [super().val_dataloader(), DataLoader(data(20, seed=2), batch_size=10)]

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        loss = torch.nn.functional.cross_entropy(self(batch[0]), batch[1])
        if self.add:
            self.log("val_loss", loss)
        else:
            self.log(f"val_loss_{dataloader_idx}", loss, add_dataloader_idx=False)


@pytest.mark.parametrize(
    ("add", "monitor"), [(True, "val_loss/dataloader_idx_1"), (False, "val_loss_1")]
)
def test_several_validation_loaders(add: bool, monitor: str) -> None:
    callback = prune(monitor=monitor)
    fit, module = fitted(SeveralLoaders(add), callback)
    assert_pruned(fit, module)


def test_several_validation_loaders_and_the_bare_name() -> None:
    with pytest.raises(Exception, match=r"but got 'val_loss'; logged was: 'val_loss/dataloader_i"):
        fitted(SeveralLoaders(), prune())


class Stream(IterableDataset):
    """Samples without a length or an index."""

    def __init__(self, seed: int) -> None:
        self.samples = [(x, y) for x, y in data(24, seed)]

    def __iter__(self) -> Any:
        return iter(self.samples)


class Streaming(Net):
    def train_dataloader(self) -> Any:
        return DataLoader(Stream(0), batch_size=12)

    def val_dataloader(self) -> Any:
        return DataLoader(Stream(1), batch_size=12)


@pytest.mark.parametrize("arguments", [{}, {"fitness_batches": 1}, {"recalibration_batches": 9}])
def test_iterable_data(arguments: dict[str, Any]) -> None:
    fit, module = fitted(Streaming(), prune(**arguments))
    assert_pruned(fit, module)


class Dictionaries(Net):
    """Batches are dictionaries, with more in them than the network takes."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return super().training_step((batch["image"], batch["label"]), batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step((batch["image"], batch["label"]), batch_idx)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return (
            batch if isinstance(batch, dict) else {"image": batch[0], "label": batch[1], "of": {}}
        )


class Module(pl.LightningDataModule):
    """A data module that builds its data in `setup`."""

    def setup(self, stage: str) -> None:
        self.train, self.val = data(), data(20, seed=1)

    def train_dataloader(self) -> Any:
        return DataLoader(self.train, batch_size=12, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(self.val, batch_size=20)


class Bare(Net):
    train_dataloader = pl.LightningModule.train_dataloader
    val_dataloader = pl.LightningModule.val_dataloader


def test_batches_that_are_dictionaries() -> None:
    fit, module = fitted(Dictionaries(), prune())
    assert_pruned(fit, module)


@pytest.mark.filterwarnings("ignore:`validation_step` cannot be run .* on a training batch")
@pytest.mark.parametrize("source", ["datamodule", "loaders", "two training loaders"])
def test_where_the_data_comes_from(source: str) -> None:
    source_of = Module()
    source_of.setup("fit")
    given: dict[str, Any] = {"datamodule": source_of}
    if source != "datamodule":
        train = source_of.train_dataloader()
        given = {"train_dataloaders": train, "val_dataloaders": source_of.val_dataloader()}
    module: Any = Bare()
    if source == "two training loaders":
        given["train_dataloaders"] = {"a": train, "b": train}
        module = TwoLoaders()
    fit = trainer(prune())
    fit.fit(module, **given)
    assert_pruned(fit, module)


class TwoLoaders(Bare):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return sum(super(TwoLoaders, self).training_step(batch[k], batch_idx) for k in "ab")


def test_workers() -> None:
    class Workers(Net):
        def train_dataloader(self) -> Any:
            return DataLoader(data(), batch_size=12, num_workers=1, persistent_workers=True)

    fit, module = fitted(Workers(), prune())
    assert_pruned(fit, module)
