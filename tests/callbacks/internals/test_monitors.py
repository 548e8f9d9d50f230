from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import (
    EarlyStopping,
    ModelCheckpoint,
    StochasticWeightAveraging,
)

from lightning_slimga.callbacks.internals import averaged_models, reset_monitors
from tests.callbacks.internals.tiny import At, TinyNet, at_batch_start, trainer

SCORES = (0.90, 0.95, 0.60, 0.70, 0.80, 0.75)


class Scored(TinyNet):
    """Its validation scores are known; they fall at epoch 2, as after surgery."""

    def on_validation_epoch_end(self) -> None:
        if not self.trainer.sanity_checking:
            self.log("score", SCORES[self.trainer.current_epoch])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, "max", patience=1)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "monitor": "score"},
        }


def run(folder: Path, *extra: pl.Callback) -> tuple[Any, ModelCheckpoint]:
    best = ModelCheckpoint(folder, monitor="score", mode="max", filename="{epoch}")
    stopping = EarlyStopping("score", mode="max", patience=2)
    fit = trainer(best, stopping, *extra, max_epochs=6, enable_checkpointing=True)
    fit.fit(Scored())
    return fit, best


def test_without_reset_the_dense_network_stays_the_best(tmp_path: Path) -> None:
    fit, best = run(tmp_path)
    assert (fit.current_epoch, best.best_model_path[-12:]) == (4, "epoch=1.ckpt")


def test_best_patience_and_schedule_start_anew(tmp_path: Path) -> None:
    at = At(lambda t, _: reset_monitors(t), epoch=2)
    fit, best = run(tmp_path, at)
    assert at.result == [str(tmp_path / "epoch=1.ckpt")]
    assert fit.current_epoch == 6
    assert Path(best.best_model_path).name == "epoch=4.ckpt"
    assert float(best.best_model_score) == pytest.approx(0.8)
    assert fit.optimizers[0].param_groups[0]["lr"] == 0.1
    assert sorted(p.name for p in tmp_path.glob("*.ckpt")) == ["epoch=1.ckpt", "epoch=4.ckpt"]


def test_a_save_at_the_same_step_is_not_skipped(tmp_path: Path) -> None:
    def save_again(trainer: Any, module: Any) -> list[str]:
        reset_monitors(trainer)
        trainer.checkpoint_callback.on_train_epoch_end(trainer, module)
        return sorted(path.name for path in tmp_path.iterdir())

    at = At(save_again, epoch=2)
    run(tmp_path, at)
    assert at.result == ["epoch=1.ckpt", "epoch=2.ckpt"]


@pytest.mark.filterwarnings("ignore:.*Swapping scheduler")
def test_averaged_copies_are_found() -> None:
    def average(trainer: Any, module: Any) -> Any:
        found = averaged_models(trainer)
        assert all(m is not module and type(m) is type(module) for m in found)
        names = [name for name, _ in module.named_parameters()]
        assert all([name for name, _ in m.named_parameters()] == names for m in found)
        return len(found)

    assert at_batch_start(average) == 0
    swa = StochasticWeightAveraging(0.1, swa_epoch_start=1)
    averaging = getattr(pl.callbacks, "EMAWeightAveraging", None)  # lightning >= 2.6
    others = [averaging()] if averaging else []
    at = At(average)
    trainer(swa, *others, at).fit(TinyNet())
    assert at.result == 1 + len(others)
