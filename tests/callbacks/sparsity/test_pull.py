"""The callback against the same penalty written into the loss, mostly in double precision."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_slimga.callbacks.sparsity.callback import SparsityCallback

STRENGTH, EPSILON = 0.05, 1e-3


def written_out(name: str, gamma: Tensor) -> Tensor:
    if name == "l1_2":
        return (gamma.abs() + EPSILON).pow(0.5).sum()
    if name == "l1":
        return gamma.abs().sum()
    return 1.2 * gamma.abs().sum() - (gamma - gamma.mean()).abs().sum()


class Net(pl.LightningModule):
    """Two batch norms; the penalty goes into the loss where `in_loss` names it."""

    def __init__(self, optimizer: Any, in_loss: str | None, manual: bool = False, every: int = 1):
        super().__init__()
        torch.manual_seed(1)
        self.first = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU())
        self.second = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 1))
        with torch.no_grad():
            self.first[1].weight.uniform_(-1, 1)
        self.optimizer, self.in_loss, self.every = optimizer, in_loss, every
        self.automatic_optimization = not manual

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor | None:
        x, y = batch
        loss = nn.functional.mse_loss(self.second(self.first(x)), y)
        if self.in_loss:
            gamma = torch.cat([self.first[1].weight, self.second[1].weight])
            loss = loss + STRENGTH * written_out(self.in_loss, gamma)
        if self.automatic_optimization:
            return loss
        self.manual_backward(loss / self.every)
        if (batch_idx + 1) % self.every == 0:
            optimizers = self.optimizers()
            for optimizer in optimizers if isinstance(optimizers, list) else [optimizers]:
                optimizer.step()
                optimizer.zero_grad()
        return None

    def configure_optimizers(self) -> Any:
        return self.optimizer(self)


def sgd(net: Net) -> Any:
    return torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)


def adam(net: Net) -> Any:
    return torch.optim.Adam(net.parameters(), lr=0.01)


def adamw(net: Net) -> Any:
    return torch.optim.AdamW(net.parameters(), lr=0.01, weight_decay=0.1)


def fused(net: Net) -> Any:
    return torch.optim.Adam(net.parameters(), lr=0.01, fused=True)


def two(net: Net) -> Any:
    return [
        torch.optim.SGD(net.first.parameters(), lr=0.05, momentum=0.9),
        torch.optim.Adam(net.second.parameters(), lr=0.01),
    ]


def loader(dtype: torch.dtype = torch.float64) -> DataLoader:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(64, 5, generator=generator, dtype=dtype)
    return DataLoader(TensorDataset(x, x[:, :1] * x[:, 1:2]), batch_size=8)


def train(net: Net, *callbacks: pl.Callback, precision: str = "64-true", **kwargs: Any) -> Tensor:
    trainer = pl.Trainer(
        max_epochs=2,
        accelerator="cpu",
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **({} if "plugins" in kwargs else {"precision": precision}),
        **kwargs,
    )
    trainer.fit(net, loader(torch.float64 if precision == "64-true" else torch.float32))
    return nn.utils.parameters_to_vector(net.parameters()).detach()


def penalised(penalty: str = "l1_2") -> SparsityCallback:
    return SparsityCallback(
        STRENGTH, penalty=penalty, epsilon=EPSILON if penalty == "l1_2" else None
    )


def assert_equal_to_loss(result: Tensor, expected: Tensor, without: Tensor, tol: float) -> None:
    # Rounding differs in the last bit, and Adam divides it by nearly nothing.
    assert (expected - without).abs().max() > 1e-3  # the penalty matters in this test
    torch.testing.assert_close(result, expected, rtol=0, atol=tol)


@pytest.mark.parametrize("optimizer", [sgd, adam, adamw, fused])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(
    "clip",
    [
        {},
        {"gradient_clip_val": 0.05},
        {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
    ],
    ids=["unclipped", "norm", "value"],
)
def test_automatic(optimizer: Any, accumulate: int, clip: dict[str, Any]) -> None:
    how = {"accumulate_grad_batches": accumulate, **clip}
    without = train(Net(optimizer, None), **how)
    expected = train(Net(optimizer, "l1_2"), **how)
    result = train(Net(optimizer, None), penalised(), **how)
    assert_equal_to_loss(result, expected, without, 1e-8)


@pytest.mark.parametrize("penalty", ["l1", "polarization"])
def test_penalties(penalty: str) -> None:
    without = train(Net(sgd, None))
    expected = train(Net(sgd, penalty))
    result = train(Net(sgd, None), penalised(penalty))
    assert_equal_to_loss(result, expected, without, 1e-8)


@pytest.mark.parametrize("optimizer", [sgd, adam, two])
@pytest.mark.parametrize("every", [1, 2])
def test_manual(optimizer: Any, every: int) -> None:
    without = train(Net(optimizer, None, manual=True, every=every))
    expected = train(Net(optimizer, "l1_2", manual=True, every=every))
    result = train(Net(optimizer, None, manual=True, every=every), penalised())
    assert_equal_to_loss(result, expected, without, 1e-8)


@pytest.mark.parametrize("optimizer", [sgd, adam, fused])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_amp_with_a_gradient_scaler(optimizer: Any, accumulate: int) -> None:
    def run(in_loss: str | None, *callbacks: pl.Callback) -> Tensor:
        scaler = torch.amp.GradScaler("cpu", init_scale=512.0)
        plugin = MixedPrecision("16-mixed", device="cpu", scaler=scaler)
        return train(
            Net(optimizer, in_loss),
            *callbacks,
            precision="16-mixed",
            plugins=[plugin],
            accumulate_grad_batches=accumulate,
        )

    # Half precision rounds the penalty's own path through the loss only in its last bits.
    assert_equal_to_loss(run(None, penalised()), run("l1_2"), run(None), 2e-4)


def test_bf16_mixed() -> None:
    without = train(Net(sgd, None), precision="bf16-mixed")
    expected = train(Net(sgd, "l1_2"), precision="bf16-mixed")
    result = train(Net(sgd, None), penalised(), precision="bf16-mixed")
    assert_equal_to_loss(result, expected, without, 2e-3)
