"""Checkpoints on either side of the surgery, loaded in every way that Lightning knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_slimga import PrunableMixin, load_pruned
from tests.fits.small_fit import (
    WIDTHS,
    Net,
    assert_equal,
    assert_optimized,
    assert_pruned,
    fitted,
    prune,
    trainer,
    widths,
)

pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A fit of four epochs, pruned after the second, with a checkpoint of each."""
    folder = tmp_path_factory.mktemp("run")
    every = ModelCheckpoint(
        folder, monitor="val_loss", filename="{epoch}", save_top_k=-1, save_last=True
    )
    callback, module = prune(prune_epoch=2), Net(optimizer="adamw")
    fit, _ = fitted(module, every, callback, max_epochs=4)
    assert_pruned(fit, module)
    fit.save_checkpoint(folder / "weights.ckpt", weights_only=True)
    return {
        "folder": folder,
        "module": module,
        "trainer": fit,
        "best": every.best_model_path,
        "callback": callback,
        "logged": float(fit.callback_metrics["val_loss"]),  # tests see the validation data, too
        "test_loss": fit.test(module, verbose=False)[0]["test_loss"],
    }


def test_what_a_file_holds(run: dict[str, Any]) -> None:
    dense = torch.load(run["folder"] / "epoch=1.ckpt", weights_only=True)
    small = torch.load(run["folder"] / "epoch=3.ckpt", weights_only=True)
    assert dense["state_dict"]["body.0.weight"].shape[0] == WIDTHS[0]
    assert small["state_dict"]["body.0.weight"].shape[0] == widths(run["module"])[0]
    assert "lightning_slimga" not in dense
    assert len(small["lightning_slimga"]["plans"]) == 1
    weights = torch.load(run["folder"] / "weights.ckpt", weights_only=True)
    assert "optimizer_states" not in weights
    assert weights["lightning_slimga"] == small["lightning_slimga"]


@pytest.mark.parametrize("name", ["epoch=3.ckpt", "last.ckpt", "weights.ckpt"])
def test_load_pruned(run: dict[str, Any], name: str) -> None:
    assert_equal(load_pruned(Net, run["folder"] / name), run["module"])


class MayBePruned(PrunableMixin, Net):
    """The class that was trained, with the one-line opt-in."""


@pytest.mark.parametrize("name", ["epoch=3.ckpt", "weights.ckpt"])
def test_load_from_checkpoint_of_a_class_that_says_so(run: dict[str, Any], name: str) -> None:
    assert_equal(MayBePruned.load_from_checkpoint(run["folder"] / name), run["module"])
    with pytest.raises(RuntimeError, match="size mismatch"):
        Net.load_from_checkpoint(run["folder"] / name)


def test_load_from_checkpoint_of_a_full_size_file(run: dict[str, Any]) -> None:
    module = MayBePruned.load_from_checkpoint(run["folder"] / "epoch=1.ckpt")
    assert widths(module)[0] == WIDTHS[0]


@pytest.mark.filterwarnings("ignore:The `srun` command")
@pytest.mark.parametrize("path", ["epoch=3.ckpt", "weights.ckpt", "best", "last"])
@pytest.mark.parametrize("with_callback", [True, False], ids=["same trainer", "new trainer"])
def test_a_pruned_file_in_a_fresh_full_size_module(
    run: dict[str, Any], path: str, with_callback: bool
) -> None:
    fit = run["trainer"] if with_callback else trainer(prune(prune_epoch=2))
    if path in ("best", "last") and not with_callback:
        path = Path(run["best"]).name if path == "best" else "last.ckpt"
    where = path if path in ("best", "last") else run["folder"] / path
    module = Net()
    loss = fit.test(module, ckpt_path=where, verbose=False)[0]["test_loss"]
    assert widths(module) == widths(run["module"])
    if path != "best":
        assert loss == pytest.approx(run["test_loss"])
        assert loss == pytest.approx(run["logged"])
        module = Net()
        assert fit.validate(module, ckpt_path=where, verbose=False)[0]["val_loss"] == loss
        logits = fit.predict(Net(), ckpt_path=where)[0]
        assert logits.shape == (20, 4)


def test_a_pruned_file_in_the_pruned_module_itself(run: dict[str, Any]) -> None:
    fit, module = trainer(prune(prune_epoch=2)), load_pruned(Net, run["folder"] / "epoch=2.ckpt")
    loss = fit.test(module, ckpt_path=run["folder"] / "epoch=3.ckpt", verbose=False)
    assert loss[0]["test_loss"] == pytest.approx(run["test_loss"])


def test_a_full_size_file_still_loads(run: dict[str, Any]) -> None:
    module = Net()
    trainer(prune(prune_epoch=2)).test(module, ckpt_path=run["folder"] / "epoch=1.ckpt")
    assert widths(module) == WIDTHS
    assert_equal(load_pruned(Net, run["folder"] / "epoch=1.ckpt"), module)


def test_a_full_size_file_in_a_pruned_module_is_refused(run: dict[str, Any]) -> None:
    small = load_pruned(Net, run["folder"] / "epoch=3.ckpt")
    with pytest.raises(ValueError, match=r"full-size .* has been pruned.* freshly built"):
        run["trainer"].test(small, ckpt_path=run["folder"] / "epoch=1.ckpt")


@pytest.mark.parametrize("start", ["epoch=0.ckpt", "epoch=1.ckpt", "epoch=2.ckpt"])
def test_resuming_ends_where_the_uninterrupted_fit_ends(run: dict[str, Any], start: str) -> None:
    """From before the search, from right before it, and from after it."""
    callback, module = prune(prune_epoch=2), Net(optimizer="adamw")
    pl.seed_everything(99, verbose=False)
    fit = trainer(callback, max_epochs=4)
    fit.fit(module, ckpt_path=run["folder"] / start)
    assert_equal(module, run["module"])
    assert_optimized(fit, module)
    assert callback.plan.state_dict() == run["callback"].plan.state_dict()
    strip = [{k: v for k, v in entry.items() if k != "seconds"} for entry in callback.history]
    assert strip == [
        {k: v for k, v in entry.items() if k != "seconds"} for entry in run["callback"].history
    ]


def test_the_file_is_small(run: dict[str, Any]) -> None:
    sizes = [run["folder"].joinpath(f"epoch={k}.ckpt").stat().st_size for k in (1, 3)]
    module = Net(widths(run["module"]), optimizer="adamw")
    fresh, _ = fitted(module, max_epochs=1)
    fresh.save_checkpoint(run["folder"] / "small.ckpt")
    plain = (run["folder"] / "small.ckpt").stat().st_size
    assert sizes[1] < plain + 12_000  # the plan and the history
    assert sizes[0] > 0


class SavesAtSurgery(pl.Callback):
    def __init__(self, path: Path) -> None:
        self.path = path

    def on_surgery(self, trainer: Any, pl_module: Any, plan: Any) -> None:
        trainer.save_checkpoint(self.path)


def test_a_file_saved_at_the_moment_of_surgery(tmp_path: Path) -> None:
    path = tmp_path / "surgery.ckpt"
    _, module = fitted(Net(), SavesAtSurgery(path), prune())
    assert widths(load_pruned(Net, path)) == widths(module)
    callback, resumed = prune(), Net()
    fit = trainer(callback)
    fit.fit(resumed, ckpt_path=path)
    assert callback.plan.summary["channels"][0] == sum(WIDTHS)
    assert_equal(resumed, module)


def test_best_before_the_surgery_does_not_win(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")

    class Scored(Net):
        """Good before the surgery, bad after it, and better from there on."""

        def on_validation_epoch_end(self) -> None:
            self.log("score", (0.9, 0.95, 0.6, 0.7, 0.65)[self.trainer.current_epoch])

    def run(folder: str, **arguments: Any) -> tuple[Any, Any]:
        best = ModelCheckpoint(tmp_path / folder, monitor="score", mode="max", filename="{epoch}")
        stop = pl.callbacks.EarlyStopping("score", mode="max", patience=2)
        callback = prune(prune_epoch=2, **arguments)
        fit, module = fitted(Scored(), best, stop, callback, max_epochs=5)
        assert_pruned(fit, module)
        return fit, best

    fit, best = run("reset")
    assert fit.current_epoch == 5
    assert Path(best.best_model_path).name == "epoch=3.ckpt"
    assert float(best.best_model_score) == pytest.approx(0.7)
    assert sorted(p.name for p in (tmp_path / "reset").glob("*.ckpt")) == [
        "epoch=1.ckpt",
        "epoch=3.ckpt",
    ]
    module = Net()
    fit.test(module, ckpt_path="best", verbose=False)
    assert sum(widths(module)) < sum(WIDTHS)

    assert f"best checkpoint before pruning: {tmp_path / 'reset' / 'epoch=1.ckpt'}" in caplog.text
    caplog.clear()

    fit, best = run("kept", reset_monitors=False)
    assert "best checkpoint before pruning" not in caplog.text
    assert fit.current_epoch == 4
    assert Path(best.best_model_path).name == "epoch=1.ckpt"
