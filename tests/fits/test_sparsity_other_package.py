"""SparsityCallback under a Trainer of the `pytorch_lightning` package, whose classes are others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_slimga import SparsityCallback

pytorch_lightning = pytest.importorskip(
    "pytorch_lightning", "2.6", reason="older ones refuse the callbacks of another package"
)


def test_gamma_is_pulled_toward_zero() -> None:
    class Classifier(pytorch_lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return 0.0 * self.net(batch[0]).mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    trainer = pytorch_lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[SparsityCallback(strength=0.1, penalty="l1")],
    )
    model = Classifier()
    trainer.fit(model, DataLoader(TensorDataset(torch.randn(8, 1, 5, 5)), batch_size=4))
    # two steps of lr 0.1 with gradient 0.1 · sign(1)
    torch.testing.assert_close(model.net[1].weight, torch.full((4,), 0.98))
