"""A small network, analysed, with a random mask: where most tests of surgery begin."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_slimga.surgery.channel_surgery import ChannelSurgery
from tests.networks.checks import random_mask
from tests.networks.zoo import two_layers


def ready() -> tuple[nn.Sequential, ChannelSurgery, Tensor, Tensor]:
    """The two-layer network, its surgery, a random mask and an input."""
    model, x = two_layers(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    surgery = ChannelSurgery(model, x)
    return model, surgery, random_mask(surgery), x
