"""Fashion-MNIST through LightningCLI; both pruning callbacks are set up in the YAML alone.

    python examples/fashion_mnist.py fit --config examples/fashion_mnist.yaml
    python examples/fashion_mnist.py fit --config examples/fashion_mnist.yaml \
        --trainer.callbacks.budget.macs=0.35

Options `--trainer.callbacks.*` edit the last callback of the list, here the pruning one. Add
`--data.download=true` where the four files of the data set are not on this machine yet.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import lightning as L
import numpy as np
import torch
from lightning.pytorch.cli import LightningCLI
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
)
from torchmetrics.classification import MulticlassAccuracy

MEAN, STD = 0.286, 0.353
"""Of the pixels of the training images, scaled to 0..1."""


class Block(nn.Module):
    """The basic block of a ResNet."""

    def __init__(self, channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, out_channels, 1, stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, out_channels, H / stride, W / stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class SmallResNet(nn.Sequential):
    """A ResNet of 5.7 million MACs for images of 28 x 28 pixels."""

    def __init__(self, widths: tuple[int, int, int] = (24, 48, 96)) -> None:
        first, second, third = widths
        super().__init__(
            nn.Conv2d(1, first, 3, 2, 1, bias=False),
            nn.BatchNorm2d(first),
            nn.ReLU(),
            Block(first, first, 1),
            Block(first, second, 2),
            Block(second, third, 2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(third, 10),
        )


class FashionClassifier(L.LightningModule):
    """An ordinary classifier; nothing in it knows about pruning.

    Args:
        lr: Highest learning rate of the one cycle that the whole fit goes through.
        weight_decay: Weight decay of SGD.
        widths: Channels of the three stages.
    """

    def __init__(
        self,
        lr: float = 0.1,
        weight_decay: float = 5e-4,
        widths: tuple[int, int, int] = (24, 48, 96),
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.lr, self.weight_decay = lr, weight_decay
        # oneDNN convolves channels-last tensors in two thirds of the time.
        self.net = SmallResNet(widths).to(memory_format=torch.channels_last)
        self.val_acc = MulticlassAccuracy(10, average="micro")
        self.test_acc = MulticlassAccuracy(10, average="micro")

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, 28, 28) -> (N, 10) logits."""
        return self.net(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Return the cross-entropy of a batch."""
        images, labels = batch
        loss = F.cross_entropy(self(images), labels)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Log the accuracy, which the search takes as fitness."""
        images, labels = batch
        self.val_acc(self(images), labels)
        self.log("val_acc", self.val_acc, prog_bar=True)

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Log the accuracy on images that nothing was chosen by."""
        images, labels = batch
        self.test_acc(self(images), labels)
        self.log("test_acc", self.test_acc)

    def configure_optimizers(self) -> dict:
        """Return SGD whose learning rate rises and falls once over the whole fit."""
        optimizer = torch.optim.SGD(
            self.parameters(), lr=self.lr, momentum=0.9, nesterov=True,
            weight_decay=self.weight_decay,
        )  # fmt: skip
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, self.lr, self.trainer.estimated_stepping_batches, pct_start=0.2
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class FashionMNIST(L.LightningDataModule):
    """55,000 images for training, 5,000 for validation, 10,000 for the test; all kept in memory.

    Args:
        folder: Where the four ``*-ubyte.gz`` files are, as laid by the Debian package
            ``dataset-fashion-mnist`` or by a download.
        download: Fetch the files into `folder` with torchvision if they are missing.
        batch_size: Images in a training batch.
        eval_batch_size: Images in a batch of validation and test.
        split_seed: Decides which training images are set apart for validation.
    """

    def __init__(
        self,
        folder: str = "/usr/share/datasets/fashion-mnist",
        download: bool = False,
        batch_size: int = 128,
        eval_batch_size: int = 1000,
        split_seed: int = 0,
    ) -> None:
        super().__init__()
        self.folder = Path(folder)
        self.download = download
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.split_seed = split_seed
        self.parts: dict[str, TensorDataset] = {}

    def prepare_data(self) -> None:
        """Download the files when that was asked for."""
        if self.download and not (self.folder / "train-images-idx3-ubyte.gz").exists():
            from torchvision.datasets import FashionMNIST as Download
            from torchvision.datasets.utils import download_url

            for name, md5 in Download.resources:
                download_url(Download.mirrors[0] + name, str(self.folder), md5=md5)

    def setup(self, stage: str) -> None:
        """Read the files once and split them."""
        if self.parts:
            return
        images, labels = read_pair(self.folder, "train")
        order = torch.randperm(60_000, generator=torch.Generator().manual_seed(self.split_seed))
        for name, chosen in zip(("train", "val"), order.split([55_000, 5_000]), strict=True):
            self.parts[name] = TensorDataset(images[chosen], labels[chosen])
        self.parts["test"] = TensorDataset(*read_pair(self.folder, "t10k"))

    def train_dataloader(self) -> DataLoader:
        """Return shuffled batches."""
        sampler = RandomSampler(self.parts["train"])
        return whole_batches(self.parts["train"], BatchSampler(sampler, self.batch_size, True))

    def val_dataloader(self) -> DataLoader:
        """Return the validation images in their order."""
        return self._in_order(self.parts["val"])

    def test_dataloader(self) -> DataLoader:
        """Return the test images in their order."""
        return self._in_order(self.parts["test"])

    def _in_order(self, part: TensorDataset) -> DataLoader:
        sampler = BatchSampler(SequentialSampler(part), self.eval_batch_size, False)
        return whole_batches(part, sampler)


def whole_batches(part: TensorDataset, sampler: BatchSampler) -> DataLoader:
    """Return a loader that cuts a batch out of the tensors at once.

    Fetching and stacking single images would take longer than this network needs for them.
    """
    return DataLoader(part, sampler=sampler, batch_size=None)


def read_pair(folder: Path, prefix: str) -> tuple[Tensor, Tensor]:
    """Return normalised images (N, 1, 28, 28) and labels (N,) of ``train`` or ``t10k``."""
    images = read_idx(folder / f"{prefix}-images-idx3-ubyte.gz").unsqueeze(1)
    labels = read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz")
    return images.float().div_(255).sub_(MEAN).div_(STD), labels.long()


def read_idx(path: Path) -> Tensor:
    """Return the uint8 tensor in a gzipped IDX file.

    Its header is two zero bytes, the type code (8: uint8), the number of dimensions, and each
    size as a big-endian 32-bit integer.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"Expected the file {path.name} in {path.parent}, but it is not there; "
            "use --data.download=true, or --data.folder for another folder."
        )
    content = gzip.decompress(path.read_bytes())
    dims = content[3]
    shape = np.frombuffer(content, ">i4", count=dims, offset=4)
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * dims)
    return torch.from_numpy(values.reshape(shape).copy())


def main(args: list[str] | None = None) -> LightningCLI:
    """Run the command line interface; `args` stand in for those of the process."""
    return LightningCLI(FashionClassifier, FashionMNIST, args=args, seed_everything_default=0)


if __name__ == "__main__":
    main()
