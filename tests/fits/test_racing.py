"""Racing inside a fit: it saves work, is resumed exactly, and stays out of the way."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_slimga.callbacks.prune.candidates import CandidateEvaluation
from tests.fits.small_fit import Net, assert_equal, data, fitted, prune, trainer

BATCHES = 12


class Raced(Net):
    """Trained a little better, and validated in many batches, so that candidates differ."""

    def train_dataloader(self) -> Any:
        return DataLoader(data(240), batch_size=12)

    def val_dataloader(self) -> Any:
        return DataLoader(data(8 * BATCHES, seed=1), batch_size=8)


def search(**arguments: Any) -> Any:
    defaults = {"population_size": 6, "generations": 4, "budget": {"macs": 0.3}}
    return prune(**{**defaults, **arguments})


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the search is told, in order."""
    values: list[float] = []
    original = CandidateEvaluation.fitness

    def fitness(self: CandidateEvaluation, mask: Any) -> float:
        values.append(original(self, mask))
        return values[-1]

    monkeypatch.setattr(CandidateEvaluation, "fitness", fitness)
    return values


def test_work_is_saved_and_the_best_is_always_complete(
    told: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    callback = search()
    with caplog.at_level(logging.INFO):
        fitted(Raced(), callback)
    assert "; racing saved" in caplog.text
    work = [entry["work"] for entry in callback.history]
    assert all(0 < share <= 1 for share in work)
    assert min(work) < 1
    best = min(told)
    assert best == callback.history[-1]["best"]
    plain = search(racing=False)
    fitted(Raced(), plain)
    assert all("work" not in entry for entry in plain.history)
    assert plain.history[0]["best"] == pytest.approx(callback.history[0]["best"])


@pytest.mark.parametrize("step", [20, 50, 105])
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_an_interrupted_race_goes_on_bit_for_bit(
    step: int, told: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted in a validation step of a candidate; those before the first do not count."""
    whole = search()
    _, module = fitted(Raced(), whole)
    expected = list(told)
    told.clear()
    steps = itertools.count(1)
    judge, judging = CandidateEvaluation.fitness, []

    def fitness(self: CandidateEvaluation, mask: Any) -> float:
        judging.append(mask)
        return judge(self, mask)

    class Interrupted(Raced):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            super().validation_step(batch, batch_idx)
            if judging and next(steps) == step:
                raise KeyError("in the middle of a candidate")

    monkeypatch.setattr(CandidateEvaluation, "fitness", fitness)
    with pytest.raises(KeyError):
        fitted(Interrupted(), search(), ModelCheckpoint(tmp_path, save_last=True))
    assert 0 < len(told) < len(expected)
    again, callback = Raced(), search()
    fit = trainer(callback, ModelCheckpoint(tmp_path, save_last=True))
    fit.fit(again, ckpt_path=tmp_path / "last.ckpt")
    assert told == expected
    assert_equal(again, module)
    assert [e["work"] for e in callback.history] == [e["work"] for e in whole.history]


class AtTheEnd(Raced):
    """Logs its metric when the validation is over."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.losses = [*getattr(self, "losses", []), self.training_step(batch, batch_idx)]

    def on_validation_epoch_end(self) -> None:
        assert len(self.losses) == BATCHES
        self.log("val_loss", torch.stack(self.losses).mean())
        self.losses = []

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])


def test_a_metric_known_only_at_the_end_switches_racing_off(
    caplog: pytest.LogCaptureFixture,
) -> None:
    callback = search(generations=2)
    with caplog.at_level(logging.INFO):
        fitted(AtTheEnd(), callback)
    assert {entry["work"] for entry in callback.history} == {1.0}
    assert caplog.text.count("no candidate is stopped early: the metric is known only at") == 1


class Loaders(Raced):
    """Two validation loaders, of which the monitor looks at one."""

    def val_dataloader(self) -> Any:
        return [super().val_dataloader(), DataLoader(data(40, seed=2), batch_size=8)]

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        super().validation_step(batch, batch_idx)


@pytest.mark.parametrize("loader", [0, 1])
def test_several_validation_loaders(loader: int, told: list[float]) -> None:
    callback = search(monitor=f"val_loss/dataloader_idx_{loader}")
    fitted(Loaders(), callback)
    assert min(told) == callback.history[-1]["best"]
    assert min(entry["work"] for entry in callback.history) < 1


def test_data_sorted_by_class_comes_in_a_random_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first batches of sorted data would be a sample of one class."""
    order: list[int] = []
    images, labels = data(8 * BATCHES, seed=1).tensors
    by_class = torch.argsort(labels, stable=True)

    class Sorted(Raced):
        def val_dataloader(self) -> Any:
            return DataLoader(TensorDataset(images[by_class], labels[by_class]), batch_size=8)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            super().validation_step(batch, batch_idx)
            if self.trainer.global_step:
                order.append(int(batch[1][0]))

    fitted(Sorted(), search(generations=1, racing=True))
    user, ours = order[:BATCHES], order[BATCHES : 2 * BATCHES]
    assert user == sorted(user)
    assert ours != sorted(ours)
    assert sorted(ours) == user
