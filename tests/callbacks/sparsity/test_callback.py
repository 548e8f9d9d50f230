from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn

from lightning_slimga.callbacks.sparsity.callback import SparsityCallback
from tests.fits.sparsity_net import AtBatch, Flat, Net, Recorder, gammas, trainer


def test_warmup_raises_the_strength_linearly() -> None:
    recorder = Recorder()
    trainer(SparsityCallback(0.1, penalty="l1", warmup_epochs=1.5), recorder, max_epochs=3).fit(
        Flat(lr=1.0)
    )
    track = torch.stack([torch.ones(8), *recorder.gammas])[:, 0]
    steps = (track[:-1] - track[1:]).tolist()
    assert steps == pytest.approx([min(1.0, i / 6) * 0.1 for i in range(12)], abs=1e-6)


@pytest.mark.parametrize("proximal", [False, True])
def test_the_chosen_factors_only(proximal: bool) -> None:
    net = Flat()
    trainer(SparsityCallback(0.1, proximal=proximal, ignore=["side"])).fit(net)
    assert (gammas(net)[:4] < 1).all()
    assert gammas(net)[4:].tolist() == [1.0] * 4


def test_frozen_factors_stay() -> None:
    net = Flat()
    net.side.weight.requires_grad_(False)
    trainer(SparsityCallback(0.1)).fit(net)
    assert (gammas(net)[:4] < 1).all()
    assert gammas(net)[4:].tolist() == [1.0] * 4


@pytest.mark.parametrize("penalty", ["l1_2", "l1"])
@pytest.mark.parametrize("raw", [False, True])
def test_proximal_leaves_exact_zeros(penalty: Any, raw: bool) -> None:
    net = Net(raw=raw)
    callback = SparsityCallback(1.5, penalty=penalty, proximal=True)
    trainer(callback, max_epochs=4).fit(net)
    assert (gammas(net) == 0).sum() >= 4


def test_proximal_equals_prox_after_each_step_by_hand() -> None:
    net, by_hand = Net(), Net()
    by_hand.load_state_dict(net.state_dict())
    trainer(SparsityCallback(0.2, penalty="l1", proximal=True), max_epochs=1).fit(net)

    optimizer = by_hand.configure_optimizers()
    for batch in by_hand.train_dataloader():
        optimizer.zero_grad()
        by_hand.training_step(batch, 0).backward()
        optimizer.step()
        with torch.no_grad():
            for layer in (by_hand.body[1], by_hand.side):
                w = layer.weight
                w.copy_(w.sign() * (w.abs() - 0.1 * 0.2).clamp(min=0))
    torch.testing.assert_close(gammas(net), gammas(by_hand))


def test_proximal_hooks_are_gone_after_the_fit() -> None:
    net = Flat()
    run = trainer(SparsityCallback(0.1, proximal=True))
    run.fit(net)
    before = gammas(net)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    run.optimizers[0].step()
    assert torch.equal(gammas(net), before)


@pytest.mark.parametrize("overflow", [False, True])
def test_proximal_respects_a_step_that_a_fused_optimizer_skips(overflow: bool) -> None:
    class Overflowing(Net):
        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            return super().training_step(batch, batch_idx) * (math.inf if overflow else 0.0)

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), lr=0.1, fused=True)

    net = Overflowing()
    plugin = MixedPrecision("16-mixed", device="cpu", scaler=torch.amp.GradScaler("cpu"))
    trainer(SparsityCallback(0.1, proximal=True), fast_dev_run=4, plugins=[plugin]).fit(net)
    assert (gammas(net) == 1).all() == overflow


@pytest.mark.parametrize("until_surgery", [True, False])
def test_surgery_ends_sparse_training(until_surgery: bool) -> None:
    net, recorder = Flat(), Recorder()
    callback = SparsityCallback(0.1, until_surgery=until_surgery)
    cut = AtBatch(lambda t, m: callback.on_surgery(t, m, plan=None))
    trainer(cut, callback, recorder).fit(net)
    moved = [not torch.equal(a, b) for a, b in itertools.pairwise(recorder.gammas)]
    assert moved == [True] * 3 + [not until_surgery] * 4
    assert callback.active != until_surgery


@pytest.mark.parametrize("order", [1, -1])
def test_surgery_takes_effect_at_once_in_either_order(order: int) -> None:
    net, recorder = Flat(), Recorder()
    callback = SparsityCallback(0.1)
    cut = AtBatch(lambda t, m: callback.on_surgery(t, m, plan=None), epoch=0)
    trainer(*[cut, callback][::order], recorder).fit(net)
    assert all((g == 1).all() for g in recorder.gammas)


def test_replaced_parameters_are_penalised() -> None:
    net = Flat(lr=1.0)

    def replace(trainer: pl.Trainer, module: Any) -> None:
        new = nn.Parameter(torch.ones(4))
        (group,) = trainer.optimizers[0].param_groups
        group["params"] = [new if p is module.side.weight else p for p in group["params"]]
        module.side.weight = new

    trainer(SparsityCallback(0.1, penalty="l1"), AtBatch(replace, batch=2)).fit(net)
    assert net.side.weight.tolist() == pytest.approx([0.8] * 4)  # 2 of 8 steps


def test_resume_equals_the_uninterrupted_run(tmp_path: Path) -> None:
    def callback() -> SparsityCallback:
        return SparsityCallback(0.02, warmup_epochs=2)

    whole, first, second = Net(), Net(), Net()
    for net in (first, second):
        net.load_state_dict(whole.state_dict())
    trainer(callback(), max_epochs=3).fit(whole)

    run = trainer(callback(), max_epochs=1)
    run.fit(first)
    run.save_checkpoint(tmp_path / "last.ckpt")
    trainer(callback(), max_epochs=3).fit(second, ckpt_path=tmp_path / "last.ckpt")

    for a, b in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_resume_after_surgery_stays_without_penalty(tmp_path: Path) -> None:
    net, callback = Flat(), SparsityCallback(0.1)
    run = trainer(callback, max_epochs=1)
    run.fit(net)
    callback.stop("this is a test")
    run.save_checkpoint(tmp_path / "last.ckpt")
    before = gammas(net)

    resumed = SparsityCallback(0.1)
    torch.load(tmp_path / "last.ckpt", weights_only=True)  # plain data
    trainer(resumed, max_epochs=2).fit(net, ckpt_path=tmp_path / "last.ckpt")

    assert not resumed.active
    assert torch.equal(gammas(net), before)
