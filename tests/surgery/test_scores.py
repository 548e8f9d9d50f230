"""Effects: scores times the weights that read a channel."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_slimga import ChannelSurgery


def chain() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 3),
    )  # fmt: skip
    for index in (1, 4):
        nn.init.uniform_(net[index].weight, -1.0, 1.0)
        nn.init.uniform_(net[index].bias, -1.0, 1.0)
    return net.double().eval()


EXAMPLE = torch.randn(1, 2, 8, 8, dtype=torch.float64)


def test_effects_are_gamma_times_the_norm_of_the_reading_weights() -> None:
    net = chain()
    effects = ChannelSurgery(net, EXAMPLE).effects()
    conv = net[1].weight.abs() * net[3].weight.pow(2).sum((0, 2, 3)).sqrt()
    # Flattened, each channel is read by 16 columns of the linear layer.
    linear = net[4].weight.abs() * net[7].weight.unflatten(1, (4, 16)).pow(2).sum((0, 2)).sqrt()
    assert effects.tolist() == pytest.approx(torch.cat([conv, linear]).tolist())


def test_effects_do_not_change_when_scale_moves_into_the_next_weights() -> None:
    net = chain()
    moved = copy.deepcopy(net)
    scale = torch.tensor([0.1, 2.0, 5.0, 1.0, 0.5, 3.0], dtype=torch.float64)
    with torch.no_grad():
        moved[1].weight *= scale
        moved[1].bias *= scale
        moved[3].weight /= scale[:, None, None]
    torch.testing.assert_close(moved(EXAMPLE), net(EXAMPLE))
    before, after = ChannelSurgery(net, EXAMPLE), ChannelSurgery(moved, EXAMPLE)
    assert after.effects().tolist() == pytest.approx(before.effects().tolist())
    assert not np.allclose(after.scores(), before.scores())


def test_a_residual_channel_is_read_by_several_weights() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.norm = nn.Conv2d(2, 5, 1), nn.BatchNorm2d(5)
            self.inner, self.inner_norm = nn.Conv2d(5, 5, 1), nn.BatchNorm2d(5)
            self.head = nn.Conv2d(5, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(self.stem(x)).relu()
            return self.head(x + self.inner_norm(self.inner(x)))

    net = Residual()
    nn.init.uniform_(net.norm.weight)
    gamma = (net.norm.weight.abs() + net.inner_norm.weight.abs()) / 2
    read = net.inner.weight.pow(2).sum((0, 2, 3)) + net.head.weight.pow(2).sum((0, 2, 3))
    effects = ChannelSurgery(net, torch.randn(2, 2, 4, 4)).effects()
    assert effects.tolist() == pytest.approx((gamma * read.sqrt()).tolist(), rel=1e-5)


def test_a_transposed_convolution_reads_along_its_first_dimension() -> None:
    net = nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.ConvTranspose2d(6, 3, 3)
    )
    effects = ChannelSurgery(net, torch.randn(1, 2, 6, 6)).effects()
    assert effects.tolist() == pytest.approx(net[3].weight.pow(2).sum((1, 2, 3)).sqrt().tolist())


def test_without_gamma_the_writing_weights_count() -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    writing, reading = net[0].weight.norm(dim=1), net[2].weight.norm(dim=0)
    effects = ChannelSurgery(net, torch.randn(1, 4, dtype=torch.float64)).effects()
    assert effects.tolist() == pytest.approx((writing / writing.mean() * reading).tolist())


def test_a_plain_product_reads_along_its_first_dimension() -> None:
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.write, self.read = nn.Parameter(torch.randn(3, 5)), nn.Linear(5, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.read(torch.relu(x @ self.write))

    model = Product()
    surgery = ChannelSurgery(model, torch.randn(2, 3))
    norms = model.write.detach().double().norm(dim=0)
    reading = model.read.weight.detach().double().norm(dim=0)
    np.testing.assert_allclose(surgery.scores(), norms / norms.mean())
    np.testing.assert_allclose(surgery.effects(), norms / norms.mean() * reading)
