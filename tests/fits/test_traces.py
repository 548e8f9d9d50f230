"""Whatever a user's validation changes outside of the module, the search leaves it as it was."""

from __future__ import annotations

import random
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LinearLR, ReduceLROnPlateau
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from lightning_slimga import is_candidate
from lightning_slimga.callbacks.internals import FitnessEvaluator
from lightning_slimga.callbacks.prune.run import PruningRun
from tests.fits.small_fit import Net, assert_equal, data, fitted, prune


class Manual(Net):
    """Steps its schedules by hand, and changes its optimizer, at the end of a validation."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.seen: list[Any] = []

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)
        self.hidden = LinearLR(optimizer, 0.5, total_iters=9)  # known to nobody but us
        return [optimizer], [ReduceLROnPlateau(optimizer, patience=0, threshold=10.0)]

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(nn.functional.cross_entropy(self(batch[0]), batch[1]))
        optimizer.step()
        self.seen.append(optimizer.param_groups[0]["lr"])

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        self.lr_schedulers().step(self.trainer.callback_metrics["val_loss"])
        self.hidden.step()
        for state in self.optimizers().optimizer.state.values():
            if state.get("momentum_buffer") is not None:
                state["momentum_buffer"].mul_(0.5)


class Meter:
    def __init__(self) -> None:
        self.n, self.generator = 0, np.random.RandomState(5)


class Keeper(pl.Callback):
    """Others count with it: it hears no hook itself while a candidate is validated."""

    def __init__(self) -> None:
        self.meters = {"val": [Meter()]}


class Data(pl.LightningDataModule):
    def __init__(self) -> None:
        super().__init__()
        self.handed_out = 0
        self.draws = random.Random(5)

    def train_dataloader(self) -> Any:
        generator = torch.Generator().manual_seed(2)
        self.train = TensorDataset(*data().tensors)
        return DataLoader(self.train, 12, sampler=RandomSampler(self.train, generator=generator))

    def val_dataloader(self) -> Any:
        return DataLoader(data(20, seed=1), batch_size=20)


class Reaching(Net):
    """Counts in, and draws from, whatever it can reach."""

    def __init__(self) -> None:
        super().__init__()
        self.noise = {"train": [torch.Generator().manual_seed(3)]}
        self.seen: list[Any] = []

    def reach(self) -> list[Any]:
        keeper = next(c for c in self.trainer.callbacks if isinstance(c, Keeper))
        (meter,) = keeper.meters["val"]
        meter.n += 1
        self.trainer.datamodule.handed_out += 1
        self.trainer.datamodule.train.read = getattr(self.trainer.datamodule.train, "read", 0) + 1
        sampler = self.trainer.train_dataloader.sampler
        return [
            meter.n,
            meter.generator.rand(),
            self.trainer.datamodule.handed_out,
            self.trainer.datamodule.draws.random(),
            self.trainer.datamodule.train.read,
            float(torch.rand(1, generator=sampler.generator)),
            float(torch.rand(1, generator=self.noise["train"][0])),
        ]

    def forward(self, x: Any) -> Any:
        self.reach()  # also where batch norm is recalibrated
        return super().forward(x)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.seen.append(self.reach())
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.reach()
        super().validation_step(batch, batch_idx)


def run(make: Any, *callbacks: pl.Callback) -> Any:
    pl.seed_everything(7, verbose=False)
    module = make()
    arguments: dict[str, Any] = {"max_epochs": 3, "logger": False, "accelerator": "cpu"}
    arguments["num_sanity_val_steps"] = 0
    for quiet in ("checkpointing", "progress_bar", "model_summary"):
        arguments[f"enable_{quiet}"] = False
    fit = pl.Trainer(callbacks=[Keeper(), *callbacks], **arguments)
    fit.fit(module, datamodule=Data() if make is Reaching else None)
    return fit, module


@pytest.mark.parametrize("make", [Manual, Reaching])
def test_a_search_without_surgery_is_no_search(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, plain = run(make)
    monkeypatch.setattr(PruningRun, "_cut", lambda *_: None)
    searched, module = run(make, prune(reset_monitors=False))
    assert module.seen == plain.seen
    assert len(set(map(str, plain.seen))) > 1
    assert_equal(module, plain)
    one, other = (fit.optimizers[0].state_dict() for fit in (expected, searched))
    assert str(one) == str(other)


def test_nor_does_an_evaluation_that_fails() -> None:
    class Fails(Manual):
        def on_validation_epoch_end(self) -> None:
            super().on_validation_epoch_end()
            if is_candidate():
                raise ArithmeticError("in a candidate")

    class Tries(pl.Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, idx: int) -> None:
            if idx == 0 and trainer.current_epoch == 1:
                evaluator = FitnessEvaluator(trainer, module, "val_loss")
                with pytest.raises(ArithmeticError, match="in a candidate"):
                    evaluator()

    (_, plain), (_, module) = run(Manual), run(Fails, Tries())
    assert module.seen == plain.seen
    assert_equal(module, plain)


def test_user_code_knows_whose_run_it_is() -> None:
    said: dict[str, set[bool]] = {}

    class Asking(Net):
        def forward(self, x: Any) -> Any:
            said.setdefault("forward", set()).add(is_candidate())
            return super().forward(x)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            said.setdefault("training", set()).add(is_candidate())
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            said.setdefault("validation", set()).add(is_candidate())
            super().validation_step(batch, batch_idx)

        def on_validation_epoch_end(self) -> None:
            said.setdefault("hook", set()).add(is_candidate())
            super().on_validation_epoch_end()

    class Listens(pl.Callback):
        def on_validation_end(self, *_: Any) -> None:
            said.setdefault("callback", set()).add(is_candidate())

    plain = Asking()
    fitted(plain, Listens())
    assert all(answers == {False} for answers in said.values())
    said.clear()
    fitted(Asking(), Listens(), prune())
    assert said.pop("callback") == {False}
    assert all(answers == {False, True} for answers in said.values())
    assert not is_candidate()
