"""Nobody learns of a candidate: a fit with a search, but without surgery, is the fit without it."""

from __future__ import annotations

import csv
import random
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy

from lightning_slimga.callbacks.prune.run import PruningRun
from tests.fits.small_fit import Net, assert_equal, data, prune, trainer, widths


class Random(Net):
    """Draws random numbers in training and validation, and counts what it is called for."""

    def __init__(self) -> None:
        super().__init__()
        self.accuracy = MulticlassAccuracy(4)
        self.seen: list[str] = []

    def forward(self, x: Any) -> Any:
        features = nn.functional.dropout(self.body(x), 0.3, self.training)
        return self.head(features.mean((2, 3)))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.seen.append("train")
        batch[0] += 0.1 * torch.randn_like(batch[0]) * random.random() * np.random.rand()
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.seen.append("val")
        self.accuracy(self(batch[0] + torch.randn_like(batch[0])), batch[1])
        self.log("val_metric", self.accuracy, prog_bar=True)
        super().validation_step(batch, batch_idx)

    def train_dataloader(self) -> Any:
        return DataLoader(data(), batch_size=12, shuffle=True)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": plateau, "monitor": "val_loss"},
        }


class Listener(pl.Callback):
    """Writes down every hook that a user's callback hears, and what the Trainer shows then."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def on_validation_batch_end(self, trainer: Any, *_: Any) -> None:
        self.heard.append(("validation batch", trainer.global_step))

    def on_validation_end(self, trainer: Any, *_: Any) -> None:
        self.heard.append(("validation", dict(trainer.callback_metrics)))

    def on_before_zero_grad(self, trainer: Any, *_: Any) -> None:
        self.heard.append(("zero grad", trainer.global_step))

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        state = (trainer.global_step, trainer.should_stop, dict(trainer.progress_bar_metrics))
        self.heard.append(("batch", state, dict(trainer.logged_metrics)))


class AfterSearch(pl.Callback):
    """What the Trainer shows right before and right after the search."""

    def __init__(self, views: list[Any]) -> None:
        self.views = views

    @property
    def state_key(self) -> str:
        return f"view {id(self)}"

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, idx: int) -> None:
        if trainer.current_epoch == 1 and idx == 0:
            self.views.append(
                (
                    dict(trainer.callback_metrics),
                    dict(trainer.logged_metrics),
                    dict(trainer.progress_bar_metrics),
                    trainer.global_step,
                    trainer.should_stop,
                    trainer.state.stage,
                    pl_module.training,
                    [m.training for m in pl_module.modules()],
                    {k: v.clone() for k, v in pl_module.state_dict().items()},
                    [id(p) for p in pl_module.parameters()],
                    torch.get_rng_state(),
                    random.getstate(),
                    [x.tolist() if hasattr(x, "tolist") else x for x in np.random.get_state()],
                    trainer.fit_loop.state_dict(),
                )
            )


def run(folder: Path, *callbacks: pl.Callback) -> dict[str, Any]:
    """One fit with everything that might listen; what it leaves behind."""
    best = ModelCheckpoint(folder / "ckpt", monitor="val_loss", save_top_k=-1, save_last=True)
    stopping = EarlyStopping("val_loss", patience=3)
    listener = Listener()
    pl.seed_everything(3, verbose=False)
    module = Random()
    fit = trainer(
        *(best, stopping, listener, LearningRateMonitor(), *callbacks),
        max_epochs=3,
        logger=CSVLogger(folder / "logs", name="", version=""),
        log_every_n_steps=1,
        num_sanity_val_steps=1,
    )
    fit.fit(module)
    return {
        "module": module,
        "heard": listener.heard,
        "seen": module.seen,
        "optimizer": fit.optimizers[0].state_dict(),
        "schedule": fit.lr_scheduler_configs[0].scheduler.state_dict(),
        "files": sorted(path.name for path in (folder / "ckpt").iterdir()),
        "best": {Path(k).name: v for k, v in best.best_k_models.items()},
        "stopping": stopping.state_dict(),
        "metrics": dict(fit.callback_metrics),
        "step": fit.global_step,
        "random": (torch.rand(1), random.random(), np.random.rand()),
        "log": user_rows(folder / "logs" / "metrics.csv"),
    }


def user_rows(path: Path) -> list[dict[str, str]]:
    """A CSV log without what the search itself writes."""
    with path.open() as file:
        rows = list(csv.DictReader(file))
    ours = ("search/",)
    kept = [row for row in rows if not any(v for k, v in row.items() if k.startswith(ours))]
    return [{k: v for k, v in row.items() if not k.startswith(ours)} for row in kept]


def assert_same_fit(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert_equal(one.pop("module"), other.pop("module"))
    for key, value in one.items():
        assert str(value) == str(other[key]), key


@pytest.fixture
def _no_surgery(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PruningRun, "_cut", lambda *_: None)


@pytest.mark.usefixtures("_no_surgery")
def test_a_search_changes_nothing(tmp_path: Path) -> None:
    views: list[Any] = []
    callback = prune(fitness_batches=1, reset_monitors=False)
    searched = run(tmp_path / "a", AfterSearch(views), callback, AfterSearch(views))
    plain = run(tmp_path / "b")
    assert callback.history
    assert callback.history[-1]["evaluations"] >= 4
    assert str(views[0]) == str(views[1])
    assert_same_fit(searched, plain)


def test_a_budget_that_is_met_already_changes_nothing(tmp_path: Path) -> None:
    callback = prune(budget={"macs": 1.0, "params": 10**6})
    with pytest.warns(UserWarning, match="meets the budget .* already: nothing was pruned"):
        met = run(tmp_path / "a", callback)
    plain = run(tmp_path / "b")
    assert callback.plan is None
    assert widths(met["module"]) == widths(plain["module"])
    assert_same_fit(met, plain)
