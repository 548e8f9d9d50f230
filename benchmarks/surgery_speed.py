"""How long the analysis and one surgery of torchvision's ResNet-50 take.

python -m benchmarks.surgery_speed [--size 224] [--repeat 3]
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
import torchvision

from lightning_slimga import ChannelSurgery


def seconds(size: int) -> tuple[float, float, float]:
    """Return wall seconds of one forward pass, of the analysis, and of one surgery."""
    model = torchvision.models.resnet50().eval()
    image = torch.randn(1, 3, size, size)
    with torch.no_grad():
        model(image)
        started = time.perf_counter()
        model(image)
    forward = time.perf_counter() - started
    started = time.perf_counter()
    surgery = ChannelSurgery(model, image)
    analysis = time.perf_counter() - started
    keep = torch.rand(surgery.num_channels, generator=torch.Generator().manual_seed(0)) < 0.5
    started = time.perf_counter()
    surgery.apply(keep, optimizers=[torch.optim.SGD(model.parameters(), lr=0.1)])
    return forward, analysis, time.perf_counter() - started


def main() -> None:
    """Print medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, nargs="+", default=[96, 224])
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    for size in options.size:
        runs = [seconds(size) for _ in range(options.repeat)]
        forward, analysis, surgery = (
            statistics.median(column) for column in zip(*runs, strict=True)
        )
        print(
            f"ResNet-50, {size} px, {torch.get_num_threads()} threads: forward {forward:.2f} s,"
            f" analysis {analysis:.2f} s, surgery {surgery:.2f} s"
        )


if __name__ == "__main__":
    main()
