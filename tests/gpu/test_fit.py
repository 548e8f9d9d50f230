"""Whole fits on a CUDA device, by all roads that lead there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from lightning_slimga import SparsityCallback, load_pruned
from lightning_slimga.callbacks.internals import FitnessEvaluator
from lightning_slimga.callbacks.prune.candidates import CandidateEvaluation
from tests.fits.small_fit import (
    Net,
    assert_equal,
    assert_optimized,
    assert_pruned,
    fitted,
    prune,
    trainer,
    when_resumed,
    widths,
)

pytestmark = [
    *when_resumed,
    pytest.mark.filterwarnings("ignore:It is recommended to use .*sync_dist=True"),
]

GPU: dict[str, Any] = {"accelerator": "gpu", "devices": 1}


@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_every_precision(precision: Any, optimizer: str) -> None:
    callback = prune()
    fit, module = fitted(
        Net(optimizer=optimizer),
        SparsityCallback(0.1),
        callback,
        precision=precision,
        max_epochs=3,
        **GPU,
    )
    assert_pruned(fit, module)
    assert callback.plan is not None
    assert all(torch.isfinite(p).all() for p in module.parameters())
    assert fit.callback_metrics["val_loss"].isfinite()


@pytest.mark.parametrize("options", [{"fused": True}, {"capturable": True}, {"foreach": True}])
def test_optimizers_of_the_device(options: dict[str, bool]) -> None:
    class Own(Net):
        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=1e-2, **options)

    fit, module = fitted(Own(), prune(), **GPU)
    assert_pruned(fit, module)


@pytest.mark.parametrize(
    "arguments",
    [
        {"benchmark": True},
        {"gradient_clip_val": 0.5, "accumulate_grad_batches": 2},
        {"strategy": "ddp", "sync_batchnorm": True},
        {"inference_mode": False},
    ],
    ids=["benchmark", "clip", "ddp", "no_inference_mode"],
)
def test_trainers(arguments: dict[str, Any]) -> None:
    benchmark = torch.backends.cudnn.benchmark
    fit, module = fitted(Net(), prune(), **GPU, **arguments)
    assert_pruned(fit, module)
    assert torch.backends.cudnn.benchmark == arguments.get("benchmark", benchmark)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def test_a_compiled_module() -> None:
    module = Net()
    module.body.compile(dynamic=False)
    fit, module = fitted(module, prune(), **GPU)
    assert_pruned(fit, module)


def test_latency_is_that_of_the_device() -> None:
    callback = prune(budget={"latency_ms": 50.0, "macs": 0.5})
    fit, module = fitted(Net(), callback, **GPU)
    assert_pruned(fit, module)


def test_the_front() -> None:
    callback = prune(pick="knee", generations=3)
    fit, module = fitted(Net(), callback, **GPU)
    assert widths(module)
    assert_optimized(fit, module)


def test_the_checkpoint_loads_on_the_cpu(tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, save_last=True)
    _, module = fitted(Net(), prune(), keep, **GPU)
    loaded = load_pruned(Net, tmp_path / "last.ckpt", map_location="cpu")
    assert widths(loaded) == widths(module)
    assert_equal(loaded, module.cpu())


def test_batches_are_kept_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[FitnessEvaluator] = []
    original = FitnessEvaluator.__init__

    def init(self: FitnessEvaluator, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        seen.append(self)

    monkeypatch.setattr(FitnessEvaluator, "__init__", init)
    fitted(Net(), prune(), **GPU)
    kept = seen[0]._kept
    assert kept
    assert all(t.is_cuda for batch, *_ in kept for t in batch)


class Drops(Net):
    """Draws random numbers on the device in training."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(nn.functional.dropout(self.body(x).mean((2, 3)), 0.2, self.training))


class HaltError(Exception):
    """What ends the first fit."""


@pytest.mark.parametrize("at", [2, 5])
def test_resumed_equals_uninterrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    def fit(path: Any = None) -> pl.LightningModule:
        pl.seed_everything(3, verbose=False)
        keep = ModelCheckpoint(tmp_path, save_last=True)
        module = Net(optimizer="adamw")
        run = trainer(prune(prune_epoch=2), keep, deterministic=True, max_epochs=3, **GPU)
        run.fit(module, ckpt_path=path)
        return module

    wanted = fit()
    (tmp_path / "last.ckpt").unlink()
    original, done = CandidateEvaluation._measure, []

    def failing(self: CandidateEvaluation, *args: Any) -> float:
        done.append(1)
        if len(done) == at:
            raise HaltError
        return original(self, *args)

    monkeypatch.setattr(CandidateEvaluation, "_measure", failing)
    with pytest.raises(HaltError):
        fit()
    assert_equal(wanted, fit(tmp_path / "last.ckpt"))


def test_training_is_not_disturbed() -> None:
    """Without a cut (the budget is met), a fit with the callback ends in the same weights."""
    arguments = {"deterministic": True, **GPU}
    _, wanted = fitted(Drops(), **arguments)
    with pytest.warns(UserWarning, match="meets the budget"):
        _, found = fitted(Drops(), prune(budget={"macs": 1.0}), **arguments)
    assert_equal(wanted, found)
