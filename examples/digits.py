"""From a dense network to a small one in one fit, on scikit-learn's handwritten digits.

Run `python examples/digits.py`: about a minute on two CPU cores, nothing is downloaded.
"""

from __future__ import annotations

import copy
import time

import lightning as L
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.benchmark import Timer
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.flop_counter import FlopCounterMode
from torchmetrics.classification import MulticlassAccuracy

from lightning_slimga import GeneticPruneCallback, SparsityCallback

EPOCHS, PRUNE_EPOCH, BUDGET = 40, 25, 0.4


class Block(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Conv2d(channels, out_channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, out_channels, H / stride, W / stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class DigitClassifier(L.LightningModule):
    """An ordinary LightningModule; nothing in it knows about pruning."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 24, 3, padding=1, bias=False),
            nn.BatchNorm2d(24),
            nn.ReLU(),
            Block(24, 32, stride=1),
            Block(32, 64, stride=2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(64, 10),
        )
        self.val_acc = MulticlassAccuracy(10, average="micro")

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, 8, 8) -> (N, 10) logits."""
        return self.net(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Return the cross-entropy of a batch."""
        images, labels = batch
        return F.cross_entropy(self(images), labels)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Log the accuracy, which the search will take as fitness."""
        images, labels = batch
        self.val_acc(self(images), labels)
        self.log("val_acc", self.val_acc, prog_bar=True)

    def configure_optimizers(self) -> dict:
        """Return SGD whose learning rate rises and falls once over the whole fit."""
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
        steps = self.trainer.estimated_stepping_batches
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, steps, pct_start=0.2)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Snapshots(L.Callback):
    """Keeps copies of the network from within the fit, only for the table of this example."""

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the sparse network, the last one of full size."""
        if trainer.current_epoch == PRUNE_EPOCH - 1:
            self.sparse = copy.deepcopy(pl_module.net)

    def on_surgery(self, trainer: L.Trainer, pl_module: L.LightningModule, plan: object) -> None:
        """Keep the network as it comes out of surgery."""
        self.pruned = copy.deepcopy(pl_module.net)


def digits() -> dict[str, TensorDataset]:
    """Return 997 images for training, 300 for validation and 500 for the test."""
    images, labels = load_digits(return_X_y=True)
    images = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    parts = zip(("train", "val", "test"), order.split([997, 300, 500]), strict=True)
    return {name: TensorDataset(images[i], torch.tensor(labels)[i]) for name, i in parts}


def fit(data: dict[str, TensorDataset], callbacks: list[L.Callback]) -> nn.Module:
    """Train a network for `EPOCHS` epochs and return it."""
    L.seed_everything(0, verbose=False)
    trainer = L.Trainer(
        max_epochs=EPOCHS,
        callbacks=callbacks,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model = DigitClassifier()
    train = DataLoader(data["train"], batch_size=64, shuffle=True, drop_last=True)
    trainer.fit(model, train, DataLoader(data["val"], batch_size=300))
    return model.net


@torch.no_grad()
def row(name: str, net: nn.Module, data: dict[str, TensorDataset]) -> str:
    """Return a line of the table: what the network gets right, and what it costs."""
    net.eval()
    right = {part: (net(x).argmax(1) == y).float().mean() for part, (x, y) in tensors(data)}
    one = data["test"].tensors[0][:1]
    with FlopCounterMode(display=False) as counter:
        net(one)
    latency = Timer("net(one)", globals={"net": net, "one": one}).blocked_autorange().median
    return (
        f"{name:<28}{right['val']:>10.3f}{right['test']:>10.3f}"
        f"{sum(p.numel() for p in net.parameters()):>12,}"
        f"{counter.get_total_flops() // 2:>12,}{1000 * latency:>10.3f} ms"
    )


def tensors(data: dict[str, TensorDataset]) -> list[tuple[str, tuple[Tensor, ...]]]:
    """Return the images and labels of the parts that are judged."""
    return [(part, data[part].tensors) for part in ("val", "test")]


def main() -> None:
    """Train once dense and once through the two callbacks, and print the table."""
    started = time.perf_counter()
    data, snapshots = digits(), Snapshots()
    dense = fit(data, [])
    tuned = fit(
        data,
        [
            SparsityCallback(strength=1e-2, penalty="l1"),
            GeneticPruneCallback(
                monitor="val_acc", mode="max", budget={"macs": BUDGET}, prune_epoch=PRUNE_EPOCH
            ),
            snapshots,
        ],
    )
    print(f"{'network':<28}{'val acc':>10}{'test acc':>10}{'parameters':>12}{'MACs':>12}"
          f"{'latency':>13}")  # fmt: skip
    print(row("dense", dense, data))
    print(row("sparse", snapshots.sparse, data))
    print(row("pruned before fine-tuning", snapshots.pruned, data))
    print(row("fine-tuned", tuned, data))
    print(f"{time.perf_counter() - started:.0f} s in all")


if __name__ == "__main__":
    main()
