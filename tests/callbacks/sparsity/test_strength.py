"""λ that finds itself, and γ that go together."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_slimga.callbacks.sparsity.callback import SparsityCallback
from lightning_slimga.callbacks.sparsity.strength import SteeredStrength
from tests.fits.sparsity_net import AtBatch, Flat, Net, gammas, trainer


class Digits(pl.LightningModule):
    """A small network with residual additions, on stripes of 8 directions."""

    def __init__(self, width: int = 10, residual: bool = True, optimizer: str = "sgd") -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width))
        self.blocks = nn.ModuleList(self.block(width) for _ in range(2))
        self.head = nn.Linear(width, 8)
        self.residual, self.optimizer = residual, optimizer

    @staticmethod
    def block(width: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        for block in self.blocks:
            x = (x + block(x) if self.residual else block(x)).relu()
        return self.head(x.mean((2, 3)))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def train_dataloader(self) -> DataLoader:
        generator = torch.Generator().manual_seed(0)
        label = torch.arange(256) % 8
        angle = (label * torch.pi / 8).view(-1, 1, 1, 1)
        y, x = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
        image = torch.sin(1.5 * (x * angle.cos() + y * angle.sin()))
        image = image + 0.5 * torch.randn(image.shape, generator=generator)
        return DataLoader(TensorDataset(image, label), 32, shuffle=True)

    def configure_optimizers(self) -> Any:
        if self.optimizer == "sgd":
            return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)
        return torch.optim.AdamW(self.parameters(), lr=5e-3)


def share(net: nn.Module) -> float:
    sizes = [m.weight.detach().abs() for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    return float((torch.cat(sizes) < 1e-2).float().mean())


@pytest.mark.parametrize(
    ("penalty", "optimizer", "target", "residual"),
    [
        ("l1_2", "sgd", 0.3, True),
        ("l1_2", "adamw", 0.6, False),
        ("l1_2", "sgd", 0.6, False),
        ("l1", "sgd", 0.6, True),
        ("l1", "adamw", 0.3, False),
    ],
)
def test_auto_reaches_its_share(
    penalty: Any, optimizer: str, target: float, residual: bool
) -> None:
    net = Digits(residual=residual, optimizer=optimizer)
    callback = SparsityCallback("auto", target_share=target, penalty=penalty)
    trainer(callback, max_epochs=25).fit(net)  # 200 steps
    assert share(net) == pytest.approx(target, abs=0.05)
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.weight.abs().max() > 1e-2  # no layer was emptied


@pytest.mark.parametrize("rate", [1e-3, 1e-1, 10.0])
@pytest.mark.parametrize("target", [0.2, 0.5, 0.8])
def test_steering_needs_no_tuning(rate: float, target: float) -> None:
    """A toy whose γ shrink at a speed of λ minus what holds each of them back."""
    gamma, resistance = torch.ones(100), torch.linspace(0, 1, 100)
    steering = SteeredStrength(target, 1e-2, 0, 1)
    for step in range(2000):
        if step % 20 == 0:
            steering.look(step / 2000, gamma)
        pulled = gamma <= gamma.sort().values[int(100 * target) - 1] if steering.arrived else True
        gamma = (gamma - rate / 10 * (steering.strength * pulled - resistance)).clamp(0, 2)
    assert float((gamma < 1e-2).float().mean()) == pytest.approx(target, abs=0.05)


@pytest.mark.parametrize(
    ("callbacks", "target_epoch", "expected"),
    [
        ([], None, [(1, 9)] * 5),
        ([], 4, [(1, 4)] * 5),
        ([SimpleNamespace(prune_epoch=6)], None, [(1, 6)] * 5),
        ([SimpleNamespace(prune_epoch=6)], 5, [(1, 5)] * 5),
        ([SimpleNamespace(prune_epochs=[7, 3])], None, [(1, 3), (1, 3), (3, 7), (3, 7), (3, 7)]),
    ],
)
def test_the_way_ends_at_the_next_pruning(
    callbacks: list[Any], target_epoch: int | None, expected: list[tuple[int, int]]
) -> None:
    steering = SteeredStrength(0.5, 1e-2, 1, target_epoch)
    fake = SimpleNamespace(callbacks=callbacks, max_epochs=9, num_training_batches=10)
    steering.start(fake)
    assert [steering.way(epoch) for epoch in (0, 2, 3, 6, 8)] == expected


@pytest.mark.parametrize(
    ("max_epochs", "batches", "warmup"),
    [(-1, 10, 0), (None, 10, 0), (3, float("inf"), 0), (3, 5, 3)],
)
def test_auto_needs_to_know_its_way(max_epochs: Any, batches: float, warmup: float) -> None:
    steering = SteeredStrength(0.5, 1e-2, warmup, None)
    fake = SimpleNamespace(callbacks=[], max_epochs=max_epochs, num_training_batches=batches)
    with pytest.raises(MisconfigurationException, match="Set `target_epoch`"):
        steering.start(fake)


def test_no_penalty_during_warmup() -> None:
    net, seen = Flat(), []
    callback = SparsityCallback("auto", warmup_epochs=1)
    with pytest.warns(UserWarning, match="wanted were 50%"):
        trainer(callback, AtBatch(lambda t, m: seen.append(gammas(m)), epoch=1), max_epochs=2).fit(
            net
        )
    assert seen[0].tolist() == [1.0] * 8
    assert (gammas(net) < 1).all()


def test_auto_says_when_it_has_missed() -> None:
    with pytest.warns(UserWarning, match=r"ended with 0% of γ below 0.01; wanted were 50%"):
        trainer(SparsityCallback("auto", proximal=False), max_epochs=1).fit(Net(lr=1e-4))


def test_auto_is_proximal_where_that_is_possible() -> None:
    assert SparsityCallback("auto").proximal
    assert not SparsityCallback("auto", penalty="polarization").proximal
    assert not SparsityCallback("auto", proximal=False).proximal
    assert not SparsityCallback(1e-4).proximal


@pytest.mark.filterwarnings("ignore:.*wanted were 50%")
@pytest.mark.parametrize("settings", [{}, {"proximal": False}, {"coupled": True}])
def test_resume_steers_as_the_uninterrupted_run(tmp_path: Path, settings: dict[str, bool]) -> None:
    def fit(net: Digits, epochs: int, **kwargs: Any) -> pl.Trainer:
        pl.seed_everything(epochs, verbose=False)
        end = AtBatch(lambda t, m: setattr(t, "should_stop", True), epoch=epochs - 1, batch=7)
        run = trainer(SparsityCallback("auto", **settings), end, max_epochs=26, min_epochs=1)
        net.train_dataloader = lambda: DataLoader(Digits.train_dataloader(net).dataset, 32)
        run.fit(net, **kwargs)
        return run

    whole, part, rest = Digits(), Digits(), Digits()
    for net in (part, rest):
        net.load_state_dict(whole.state_dict())
    fit(whole, 26)
    with pytest.warns(UserWarning, match="It may have ended early"):
        fit(part, 11).save_checkpoint(tmp_path / "last.ckpt")
    torch.load(tmp_path / "last.ckpt", weights_only=True)  # plain data
    fit(rest, 26, ckpt_path=tmp_path / "last.ckpt")
    for a, b in zip(whole.parameters(), rest.parameters(), strict=True):
        assert torch.equal(a, b)


def test_coupled_removes_whole_channels() -> None:
    net = Digits(width=16)
    trainer(SparsityCallback("auto", coupled=True, target_share=0.5), max_epochs=25).fit(net)
    tied = [net.stem[1], net.blocks[0][4], net.blocks[1][4]]
    zero = torch.stack([layer.weight.detach().abs() < 1e-2 for layer in tied])
    assert zero.any()
    assert (zero.all(0) == zero.any(0)).float().mean() > 0.9


def test_coupled_equals_the_norm_written_into_the_loss() -> None:
    class InLoss(Digits):
        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            tied = [self.stem[1].weight, self.blocks[0][4].weight, self.blocks[1][4].weight]
            alone = [self.blocks[0][1].weight, self.blocks[1][1].weight]
            norms = torch.cat([torch.stack(tied).norm(dim=0), torch.cat(alone).abs()])
            return super().training_step(batch, batch_idx) + 0.03 * norms.sum()

    results = []
    start = Digits().state_dict()
    for net, callbacks in (
        (Digits(), []),
        (Digits(), [SparsityCallback(0.03, penalty="l1", coupled=True)]),
        (InLoss(), []),
    ):
        net.load_state_dict(start)
        pl.seed_everything(5, verbose=False)
        trainer(*callbacks, max_epochs=1, precision="64-true").fit(net)
        results.append(nn.utils.parameters_to_vector(net.parameters()).detach())
    without, result, expected = results
    assert (expected - without).abs().max() > 1e-2
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-9)


def test_auto_needs_a_positive_near_zero() -> None:
    with pytest.raises(ValueError, match="Expected argument `near_zero` to be positive with"):
        SparsityCallback("auto", near_zero=0)
