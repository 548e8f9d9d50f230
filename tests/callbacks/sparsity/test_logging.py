from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor

from lightning_slimga.callbacks.sparsity.callback import SparsityCallback
from lightning_slimga.callbacks.sparsity.logging import log_histogram
from tests.fits.sparsity_net import Flat, Net, trainer


def test_what_is_logged() -> None:
    net = Flat(lr=1.0)
    run = trainer(
        SparsityCallback(0.05, penalty="l1", near_zero=0.7, ignore=["side"]), max_epochs=1
    )
    with torch.no_grad():
        net.body[1].weight.copy_(torch.tensor([0.5, -0.5, 1.0, 2.0]))
    run.fit(net)  # 4 steps of 0.05
    logged = {key: float(value) for key, value in run.callback_metrics.items()}
    assert logged == pytest.approx(
        {
            "sparsity/penalty": 0.3 + 0.3 + 0.8 + 1.8,
            "sparsity/strength": 0.05,
            "sparsity/near_zero": 0.5,
        }
    )


def test_logging_can_be_switched_off_and_renamed() -> None:
    run = trainer(SparsityCallback(log=False), SparsityCallback(name="second"))
    run.fit(Net())
    assert set(run.callback_metrics) == {
        "second/penalty",
        "second/strength",
        "second/near_zero",
    }


@pytest.mark.filterwarnings("ignore:.*distutils.*:DeprecationWarning")
def test_histogram_where_the_logger_shows_one(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    loggers = [TensorBoardLogger(tmp_path, version="tb"), CSVLogger(tmp_path, version="csv")]
    trainer(
        SparsityCallback(1e-2, histogram_every_n_epochs=2),
        max_epochs=4,
        logger=loggers,
        log_every_n_steps=1,
    ).fit(Net())

    events = EventAccumulator(loggers[0].log_dir, size_guidance={"histograms": 0})
    events.Reload()
    histograms = events.Histograms("sparsity/gamma")
    assert [h.step for h in histograms] == [8, 16]
    assert histograms[0].histogram_value.num == 8
    header = Path(loggers[1].log_dir, "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"sparsity/penalty", "sparsity/near_zero"} <= set(header)
    assert "sparsity/gamma" not in header


def test_histogram_for_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    class WandbLogger:
        experiment = SimpleNamespace()

        def log_metrics(self, metrics: dict[str, Any], step: int) -> None:
            self.logged = (metrics, step)

    monkeypatch.setitem(
        __import__("sys").modules, "wandb", SimpleNamespace(Histogram=lambda v: ("H", v.tolist()))
    )
    logger = WandbLogger()
    fake = SimpleNamespace(is_global_zero=True, loggers=[logger], global_step=7)
    log_histogram(fake, "x/gamma", torch.tensor([1.0, 2.0]))
    assert logger.logged == ({"x/gamma": ("H", [1.0, 2.0])}, 7)


def test_warns_once_when_the_factors_do_not_move() -> None:
    class Growing(Net):
        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            return -(self.body[1].weight.sum() + self.side.weight.sum())

    with pytest.warns(UserWarning, match="γ has not moved toward zero in epoch 1") as caught:
        trainer(SparsityCallback(1e-6, warmup_epochs=0.5), max_epochs=4).fit(Growing())
    assert sum("has not moved" in str(w.message) for w in caught) == 1


def test_warns_when_no_optimizer_step_was_seen() -> None:
    with pytest.warns(UserWarning, match="saw 4 training batches but no optimizer step"):
        trainer(SparsityCallback(1e-4), max_epochs=1, fast_dev_run=4).fit(Net(raw=True))
