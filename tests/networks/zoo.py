"""Small members of the network families: same code as the large ones, quick to run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torchvision.models as tv
from torch import Tensor, nn
from torchvision.models.densenet import DenseNet
from torchvision.models.efficientnet import FusedMBConvConfig, MBConvConfig
from torchvision.models.regnet import BlockParams
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.models.vgg import VGG, make_layers


class PlainCNN(nn.Module):
    """Convolutions with bias, no normalisation, a flatten and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 12, 3, padding=1)
        self.fc1 = nn.Linear(12 * 4 * 4, 20)
        self.fc2 = nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.max_pool2d(torch.relu(self.conv1(x)), 2)
        x = torch.max_pool2d(torch.sigmoid(self.conv2(x)), 2)
        return self.fc2(torch.nn.functional.softplus(self.fc1(torch.flatten(x, 1))))


class UNet(nn.Module):
    """Two levels down and up: transposed convolutions, skips by concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.bottom = _double(3, 8), _double(8, 12), _double(12, 16)
        self.up2, self.up1 = nn.ConvTranspose2d(16, 12, 2, 2), nn.ConvTranspose2d(12, 8, 2, 2)
        self.join2, self.join1 = _double(24, 12), _double(16, 8)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(x)
        b = self.down2(torch.max_pool2d(a, 2))
        c = self.bottom(torch.max_pool2d(b, 2))
        b = self.join2(torch.cat([self.up2(c), b], 1))
        return self.head(self.join1(torch.cat([self.up1(b), a], 1)))


def _double(cin: int, cout: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(cin, cout, 3, padding=1, bias=False),
        nn.BatchNorm2d(cout),
        nn.ReLU(inplace=True),
        nn.Conv2d(cout, cout, 3, padding=1),
        nn.BatchNorm2d(cout),
        nn.SiLU(),
    )


def cnn_of_rank(rank: int) -> nn.Module:
    """A 1d or 3d network: strided, depthwise and dilated convolutions, norm, pooling, linear."""
    conv, norm, pool = {
        1: (nn.Conv1d, nn.BatchNorm1d, nn.AdaptiveAvgPool1d),
        3: (nn.Conv3d, nn.BatchNorm3d, nn.AdaptiveAvgPool3d),
    }[rank]
    return nn.Sequential(
        conv(2, 8, 3, padding=1),
        norm(8),
        nn.GELU(),
        conv(8, 8, 3, padding=1, groups=8),
        norm(8),
        nn.Hardswish(),
        conv(8, 12, 3, padding=2, dilation=2),
        norm(12),
        nn.ELU(),
        pool(2),
        nn.Flatten(),
        nn.Linear(12 * 2**rank, 5),
    )


def _efficientnet() -> nn.Module:
    settings = [
        FusedMBConvConfig(2, 3, 1, 8, 16, 1),
        MBConvConfig(1, 3, 1, 16, 16, 1, 1.0, 1.0),
        MBConvConfig(4, 3, 2, 16, 16, 2, 1.0, 1.0),
        MBConvConfig(4, 5, 2, 16, 24, 1, 1.0, 1.0),
    ]
    return tv.EfficientNet(settings, dropout=0.2, num_classes=7, last_channel=40)


def _regnet() -> nn.Module:
    blocks = BlockParams.from_init_params(4, 16, 8.0, 2.2, 8, se_ratio=0.25)
    return tv.RegNet(blocks, num_classes=7)


def _vgg() -> nn.Module:
    network = VGG(make_layers([8, "M", 12, 12, "M", 16], batch_norm=True), init_weights=False)
    network.avgpool = nn.AdaptiveAvgPool2d(2)
    network.classifier = nn.Sequential(
        nn.Linear(64, 24), nn.ReLU(True), nn.Dropout(), nn.Linear(24, 5)
    )
    return network


def two_layers() -> nn.Sequential:
    """Two convolutions with norms and a linear head, double precision."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.SiLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    ).double()


def _image(size: int, batch: int = 2) -> Callable[[], Tensor]:
    return partial(torch.randn, batch, 3, size, size)


FAMILIES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "plain": (PlainCNN, _image(16)),
    "vgg_bn": (_vgg, _image(16)),
    "resnet": (lambda: ResNet(BasicBlock, [1, 2, 1, 1], num_classes=7), _image(32)),
    "bottleneck": (lambda: ResNet(Bottleneck, [1, 1, 1, 1], num_classes=7), _image(32)),
    "resnext": (
        lambda: ResNet(Bottleneck, [1, 1, 1, 1], 7, groups=4, width_per_group=8),
        _image(32),
    ),
    "densenet": (lambda: DenseNet(8, (2, 3, 2), 16, num_classes=7), _image(32)),
    "mobilenet_v2": (lambda: tv.mobilenet_v2(width_mult=0.25, num_classes=7), _image(32)),
    "mobilenet_v3": (lambda: tv.mobilenet_v3_small(width_mult=0.5, num_classes=7), _image(32)),
    "efficientnet": (_efficientnet, _image(32)),
    "shufflenet_v2": (
        lambda: tv.ShuffleNetV2([2, 2, 2], [8, 16, 32, 64, 48], num_classes=7),
        _image(32),
    ),
    "regnet": (_regnet, _image(32)),
    "mnasnet": (lambda: tv.mnasnet0_5(num_classes=7), _image(32)),
    "squeezenet": (lambda: tv.squeezenet1_1(num_classes=7), _image(64)),
    "googlenet": (
        lambda: tv.GoogLeNet(7, aux_logits=True, init_weights=False),
        _image(64),
    ),
    "unet": (UNet, _image(16)),
    "1d": (lambda: cnn_of_rank(1), lambda: torch.randn(2, 2, 16)),
    "3d": (lambda: cnn_of_rank(3), lambda: torch.randn(2, 2, 6, 8, 8)),
}
"""Name -> (makes a network, makes an example input)."""


def make(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor]:
    """A network of a family with fixed weights, and an input for it."""
    network, example = FAMILIES[name]
    torch.manual_seed(0)
    return network().to(dtype), example().to(dtype)
