"""The engine on a CUDA device, whose convolutions round float32 by default."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_slimga import ChannelSurgery
from lightning_slimga.cost.latency import measure_latency
from lightning_slimga.running.torch_settings import exact_float32
from tests.networks.checks import random_mask
from tests.networks.random_networks import build, check
from tests.networks.steps import SeededChoices

NETWORKS = {
    "resnet50": 64,
    "densenet121": 64,
    "mobilenet_v3_small": 64,
    "shufflenet_v2_x1_0": 64,
    "efficientnet_b0": 64,
    "regnet_y_400mf": 64,
    "convnext_tiny": 64,
    "vit_b_16": 224,
    "swin_t": 64,
    "mobilenet_v2": 64,
}


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return getattr(torchvision.models, name)(weights=None)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_cut_on_the_gpu_as_on_the_cpu(name: str) -> None:
    size = NETWORKS[name]
    x = torch.randn(2, 3, size, size)
    on_cpu = ChannelSurgery(network(name), x)
    model, y = network(name).cuda(), torch.randn(4, 3, size, size, device="cuda")
    surgery = ChannelSurgery(model, x.cuda())
    assert surgery.frozen == on_cpu.frozen
    assert [(one.name, one.slice) for one in surgery.layers] == [
        (one.name, one.slice) for one in on_cpu.layers
    ]
    mask = random_mask(surgery)
    model.eval()
    with torch.no_grad(), exact_float32():
        with surgery.masked(mask):
            wanted = model(y)
        with surgery.shrunk(mask):
            while_cut = model(y)
        surgery.apply(mask)
        found = model(y)
    scale = wanted.abs().max()
    assert (while_cut - wanted).abs().max() <= 2e-5 * scale
    assert (found - wanted).abs().max() <= 2e-5 * scale
    assert all(p.is_cuda for p in [*model.parameters(), *model.buffers()])
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(x.cuda())
    assert surgery.macs(mask) == counter.get_total_flops() // 2
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    model(y).sum().backward()
    optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    model, x = network("resnet18").cuda().to(dtype), torch.randn(2, 3, 64, 64).cuda().to(dtype)
    surgery = ChannelSurgery(model, x)
    expected = ChannelSurgery(network("resnet18"), torch.randn(2, 3, 64, 64))
    assert surgery.num_channels == expected.num_channels
    surgery.apply(random_mask(surgery))
    assert model(x).dtype == dtype


def test_channels_last_stays() -> None:
    model = network("resnet18").cuda().to(memory_format=torch.channels_last)
    surgery = ChannelSurgery(model, torch.randn(2, 3, 64, 64, device="cuda"))
    surgery.apply(random_mask(surgery))
    assert all(
        m.weight.is_contiguous(memory_format=torch.channels_last)
        for m in model.modules()
        if isinstance(m, nn.Conv2d)
    )


class Noisy(nn.Module):
    """Draws from the generator of the device in either mode."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.first(x))
        return self.second(nn.functional.dropout(hidden)) + torch.rand(1, device=x.device)


def test_the_generator_of_the_device_stays_where_it_is() -> None:
    model = Noisy().cuda()
    torch.cuda.manual_seed(5)
    before = torch.cuda.get_rng_state()
    surgery = ChannelSurgery(model, torch.randn(3, 8).cuda())
    assert torch.equal(torch.cuda.get_rng_state(), before)
    surgery.apply(random_mask(surgery))
    assert torch.equal(torch.cuda.get_rng_state(), before)


def test_latency_waits_for_the_device() -> None:
    """Launching a product of this size takes microseconds, computing it milliseconds."""
    model = nn.Sequential(nn.Linear(8192, 8192), nn.Linear(8192, 8192)).cuda()
    surgery = ChannelSurgery(model, torch.randn(8192, 8192, device="cuda"))
    with exact_float32():
        assert measure_latency(model, surgery.calls) > 20.0


def test_an_optimizer_on_the_gpu_goes_on() -> None:
    model, x = network("resnet18").cuda(), torch.randn(4, 3, 64, 64, device="cuda")
    for options in ({"fused": True}, {"capturable": True}, {"foreach": True}):
        optimizer = torch.optim.AdamW(model.parameters(), **options)
        model(x).sum().backward()
        optimizer.step()
        surgery = ChannelSurgery(model, x)
        surgery.apply(random_mask(surgery, share=0.8), optimizers=[optimizer])
        model(x).sum().backward()
        optimizer.step()
        for parameter, state in optimizer.state.items():
            assert state["exp_avg"].shape == parameter.shape
            assert state["exp_avg"].is_cuda


def test_random_networks() -> None:
    for seed in range(60):
        sample = build(SeededChoices(seed)).on("cuda")
        check(sample, seed)
