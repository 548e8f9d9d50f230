"""Three small networks of different kinds, and a short training of any of them on small images."""

from __future__ import annotations

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from benchmarks import measure
from examples.fashion_mnist import FashionMNIST, SmallResNet, whole_batches

TRAINING_IMAGES = 10_000
PARTS = {"train": TRAINING_IMAGES, "test": 10_000}


def convolution(
    inputs: int, outputs: int, stride: int = 1, *, kernel: int = 3, groups: int = 1
) -> nn.Sequential:
    """Return a convolution with batch norm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


def head(channels: int) -> tuple[nn.Module, ...]:
    """Return the classifier."""
    return nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10)


class InvertedResidual(nn.Module):
    """The block of a MobileNetV2: wide inside, depthwise, narrow and linear outside."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        hidden = 4 * inputs
        self.residual = stride == 1 and inputs == outputs
        self.body = nn.Sequential(
            convolution(inputs, hidden, kernel=1),
            convolution(hidden, hidden, stride, groups=hidden),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, H / stride, W / stride)."""
        return x + self.body(x) if self.residual else self.body(x)


def small_resnet() -> nn.Module:
    """Return the ResNet of the examples at half its width."""
    return SmallResNet((12, 24, 48))


def plain() -> nn.Module:
    """Return a chain of convolutions as in VGG."""
    return nn.Sequential(
        convolution(1, 16), convolution(16, 16), nn.MaxPool2d(2),
        convolution(16, 32), convolution(32, 32), nn.MaxPool2d(2), convolution(32, 64), *head(64),
    )  # fmt: skip


def mobile() -> nn.Module:
    """Return a chain of inverted residuals as in MobileNetV2."""
    return nn.Sequential(
        convolution(1, 12, 2),
        InvertedResidual(12, 12, 1),
        InvertedResidual(12, 24, 2),
        InvertedResidual(24, 24, 1),
        convolution(24, 96, kernel=1),
        *head(96),
    )


NETWORKS = {"small ResNet": small_resnet, "plain CNN": plain, "MobileNet-like": mobile}


class Classifier(L.LightningModule):
    """Any of the networks, trained with SGD and one cycle of the learning rate."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, 14, 14) -> (N, 10) logits."""
        return self.net(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Return the cross-entropy of a batch."""
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> dict:
        """Return the optimizer with its schedule."""
        optimizer = torch.optim.SGD(
            self.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, 0.1, self.trainer.estimated_stepping_batches, pct_start=0.2
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def small_images() -> dict[str, TensorDataset]:
    """Return Fashion-MNIST at 14 x 14 pixels: 10,000 images to train with, all test images."""
    data = FashionMNIST()
    data.setup("fit")
    return {
        name: TensorDataset(
            F.avg_pool2d(data.parts[name].tensors[0][:count], 2),
            data.parts[name].tensors[1][:count],
        )
        for name, count in PARTS.items()
    }


def fit(
    network: str, images: dict[str, TensorDataset], seed: int, epochs: int, sparsity: L.Callback
) -> tuple[nn.Module, float]:
    """Train a new network with the callback; return it with its test accuracy."""
    L.seed_everything(seed, verbose=False)
    model = Classifier(NETWORKS[network]())
    trainer = L.Trainer(
        max_epochs=epochs, callbacks=[sparsity], accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, batches(images["train"]))
    return model.net, measure.accuracy(model.net, *images["test"].tensors)


def batches(part: TensorDataset) -> DataLoader:
    """Return shuffled batches of 128 images."""
    return whole_batches(part, BatchSampler(RandomSampler(part), 128, drop_last=True))
