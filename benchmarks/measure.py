"""What is measured of a network, without a Trainer and without this package's own counters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

BATCH = 1000


@torch.no_grad()
def accuracy(net: nn.Module, images: Tensor, labels: Tensor, batch: int = BATCH) -> float:
    """Return the share of images (N, ...) whose largest logit is at the label (N,)."""
    net.eval()
    right = sum(
        int((net(x).argmax(1) == y).sum())
        for x, y in zip(images.split(batch), labels.split(batch), strict=True)
    )
    return right / len(labels)


@torch.no_grad()
def recalibrate(net: nn.Module, batches: Sequence[Tensor]) -> None:
    """Set the running statistics of batch norm to the plain average over the batches."""
    net.train()
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative average
    for batch in batches:
        net(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def cost(net: nn.Module, sample: Tensor) -> dict[str, float]:
    """Return MACs and parameters of a network, and milliseconds for one sample (1, ...)."""
    net.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(sample)
    with torch.no_grad():
        timer = Timer("net(sample)", globals={"net": net, "sample": sample})
        seconds = timer.blocked_autorange(min_run_time=0.5).median
    return {
        "macs": counter.get_total_flops() // 2,
        "params": sum(parameter.numel() for parameter in net.parameters()),
        "latency_ms": 1000 * seconds,
    }
