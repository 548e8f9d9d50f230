from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader

from lightning_slimga.callbacks.internals import install_checkpoint_hooks, remove_checkpoint_hooks
from tests.callbacks.internals.tiny import data, trainer

pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")


class Sized(pl.LightningModule):
    """A network whose hidden width is its plan; has checkpoint hooks of its own."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.resize(width)

    def resize(self, width: int) -> None:
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(36, width), nn.Linear(width, 3))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.training_step(batch, batch_idx))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_loss", self.training_step(batch, batch_idx))

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return self.net(batch[0])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.seen.append("own save")
        checkpoint["mine"] = self.net[1].out_features

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        assert checkpoint["mine"] == self.net[1].out_features
        self.seen.append("own load")


class Plan(pl.Callback):
    """Stands for the pruning callback: the plan is the width."""

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        install_checkpoint_hooks(pl_module, on_load=self.shrink, on_save=self.store)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        remove_checkpoint_hooks(pl_module)

    def shrink(self, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        pl_module.seen.append("shrink")
        pl_module.resize(checkpoint["plan"])

    def store(self, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        pl_module.seen.append("store")
        checkpoint["plan"] = checkpoint["mine"]


def loader() -> DataLoader:
    return DataLoader(data(), batch_size=16)


def trained(folder: Path, **arguments: Any) -> tuple[Sized, pl.Trainer, str]:
    checkpoint = ModelCheckpoint(folder, filename="x", **arguments)
    fit = trainer(Plan(), checkpoint, enable_checkpointing=True, max_epochs=1)
    module = Sized(2)
    fit.fit(module, loader(), loader())
    return module, fit, checkpoint.best_model_path


@pytest.mark.parametrize("weights_only", [True, False])
@pytest.mark.filterwarnings("ignore:.*save_weights_only")
def test_every_checkpoint_has_the_plan_and_every_stage_loads_it(
    tmp_path: Path, weights_only: bool
) -> None:
    module, _, path = trained(tmp_path, save_weights_only=weights_only)
    assert module.seen == ["own save", "store"]
    assert torch.load(path, weights_only=True)["plan"] == 2
    x = data().tensors[0]
    for stage in ("validate", "test", "predict"):
        fresh = Sized(4)
        run = getattr(trainer(Plan(), enable_progress_bar=False), stage)
        result = run(fresh, loader(), ckpt_path=path)
        assert fresh.seen == ["shrink", "own load"]
        assert torch.equal(fresh.net(x), module.net(x))
    assert torch.equal(torch.cat(result), module.net(x))


def test_fit_resumes_a_full_size_module(tmp_path: Path) -> None:
    path = trained(tmp_path)[2]
    fresh = Sized(4)
    resumed = trainer(Plan(), max_epochs=2)
    resumed.fit(fresh, loader(), loader(), ckpt_path=path)
    fit = trainer(max_epochs=2)
    straight = Sized(2)
    fit.fit(straight, loader(), loader(), ckpt_path=path)  # small from the start
    for a, b in zip(fresh.parameters(), straight.parameters(), strict=True):
        assert torch.equal(a, b)
    assert fresh.net[1].out_features == 2
    assert resumed.global_step == 8


def test_best_of_the_same_process(tmp_path: Path) -> None:
    module, fit, _ = trained(tmp_path)
    module.resize(3)
    fit.test(module, loader(), ckpt_path="best")
    assert module.net[1].out_features == 2


def test_hooks_are_removed_and_not_stacked() -> None:
    module, plan = Sized(), Plan()
    own = set(vars(module))
    for _ in range(3):
        plan.setup(None, module, "fit")
    module.on_save_checkpoint(checkpoint := {})
    assert module.seen == ["own save", "store"]
    assert checkpoint == {"mine": 4, "plan": 4}
    plan.teardown(None, module, "fit")
    remove_checkpoint_hooks(module)
    assert set(vars(module)) == own


def test_a_hook_set_on_the_instance_is_kept() -> None:
    module = Sized()
    former = module.on_load_checkpoint = lambda checkpoint: module.seen.append("former")
    Plan().setup(None, module, "fit")
    module.on_load_checkpoint({"plan": 3})
    assert module.seen == ["shrink", "former"]
    remove_checkpoint_hooks(module)
    assert module.on_load_checkpoint is former


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_keep_only_their_own_hooks(duplicate: Any) -> None:
    module, plan = Sized(), Plan()
    plan.unpicklable = lambda: None
    plan.setup(None, module, "fit")
    copied = duplicate(module)
    copied.resize(3)
    copied.on_save_checkpoint(checkpoint := {})
    assert checkpoint == {"mine": 3}
    assert (copied.seen, module.seen) == (["own save"], [])
