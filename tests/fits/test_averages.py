"""Beside Lightning's averages of weights, which are cut along: one short fit each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch import callbacks as of_lightning

from lightning_slimga import load_pruned
from tests.fits.small_fit import (
    WIDTHS,
    Net,
    assert_equal,
    assert_optimized,
    assert_pruned,
    fitted,
    lightning_2_6,
    prune,
    trainer,
    widths,
)


class Average(pl.Callback):
    """The average by hand: of all weights seen so far, cut when the network is cut.

    Args:
        decay: of an exponential average; None for the mean.
    """

    def __init__(self, decay: float | None) -> None:
        self.decay, self.steps = decay, 0
        self.average: dict[str, torch.Tensor] = {}

    def on_surgery(self, trainer: Any, pl_module: Any, plan: Any) -> None:
        for name, cut in plan.tensors.items():
            if name in self.average:
                self.average[name] = cut.take(self.average[name])

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        kept = self.steps / (self.steps + 1) if self.decay is None else self.decay
        self.steps += 1
        for name, parameter in pl_module.named_parameters():
            now = parameter.detach().clone()
            before = self.average.get(name, now)
            self.average[name] = kept * before + (1 - kept) * now


@lightning_2_6
def test_an_exponential_average_is_cut_along(tmp_path: Path) -> None:
    mine, theirs = Average(0.9), of_lightning.EMAWeightAveraging(decay=0.9)
    saver = of_lightning.ModelCheckpoint(tmp_path, save_last=True)
    fit, module = fitted(Net(), mine, theirs, prune(), saver, max_epochs=3)
    assert_pruned(fit, module)
    assert theirs._average_model.module.body[0].weight.shape == module.body[0].weight.shape
    for name, parameter in module.named_parameters():  # the fit ends with the average
        torch.testing.assert_close(parameter.detach(), mine.average[name])
    loaded = load_pruned(Net, tmp_path / "last.ckpt")
    for name, parameter in loaded.named_parameters():
        torch.testing.assert_close(parameter.detach(), mine.average[name])


@lightning_2_6
def test_a_plain_average_is_cut_along() -> None:
    mine, theirs = Average(None), of_lightning.WeightAveraging()
    fit, module = fitted(Net(), mine, theirs, prune(), max_epochs=3)
    assert_pruned(fit, module)
    assert widths(theirs._average_model.module) == widths(module)
    assert int(theirs._average_model.n_averaged) == fit.global_step
    for name, parameter in module.named_parameters():  # the fit ends with the average
        torch.testing.assert_close(parameter.detach(), mine.average[name])


@lightning_2_6
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize("order", [1, -1])
def test_an_average_is_resumed_small(tmp_path: Path, order: int) -> None:
    def run(module: Any, path: Any = None) -> Any:
        saver = of_lightning.ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        callbacks = [of_lightning.EMAWeightAveraging(decay=0.9), prune(), saver][::order]
        fit = trainer(*callbacks, max_epochs=4)
        fit.fit(module, ckpt_path=path)
        return module

    whole = run(Net())
    for epoch in (0, 1, 2):
        assert_equal(run(Net(), tmp_path / f"epoch={epoch}.ckpt"), whole)


@pytest.mark.filterwarnings("ignore:.*Swapping scheduler")
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_stochastic_weight_averaging_is_resumed_small(tmp_path: Path) -> None:
    def run(module: Any, path: Any = None) -> Any:
        saver = of_lightning.ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        theirs = of_lightning.StochasticWeightAveraging(0.05, swa_epoch_start=1)
        fit = trainer(theirs, prune(prune_epoch=2), saver, max_epochs=5)
        fit.fit(module, ckpt_path=path)
        return module

    whole = run(Net())
    for epoch in (1, 3):
        assert_equal(run(Net(), tmp_path / f"epoch={epoch}.ckpt"), whole)


@pytest.mark.filterwarnings("ignore:.*Swapping scheduler")
@pytest.mark.parametrize(("start", "epoch"), [(1, 2), (2, 1), (2, 2)])
def test_stochastic_weight_averaging(start: int, epoch: int) -> None:
    """Surgery while the average grows, before it begins, and at the same moment."""
    theirs = of_lightning.StochasticWeightAveraging(0.05, swa_epoch_start=start)
    fit, module = fitted(Net(), theirs, prune(prune_epoch=epoch), max_epochs=4)
    assert sum(widths(module)) < sum(WIDTHS)
    assert_optimized(fit, module)
    assert theirs._average_model.body[3].weight.shape == module.body[3].weight.shape
    assert all(torch.isfinite(p).all() for p in module.parameters())
