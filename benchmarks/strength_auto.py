"""`strength="auto"` beside fixed λ, and `coupled=True` beside single γ.

    python -m benchmarks.strength_auto            # what is missing, then the tables
    python -m benchmarks.strength_auto --fresh    # everything anew

Three networks on 10,000 Fashion-MNIST images of 14 x 14 pixels. The target is half of γ below 0.01
at the end of the fit. Five fixed λ a factor of 1.25 apart lie around the one that "auto" has to
beat; which they are was found by hand for each network, with the hindsight that "auto" does
without. Writes results/strength_auto.json, one fit at a time.
"""

from __future__ import annotations

import argparse
import time
import warnings
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import TensorDataset

from benchmarks import strength_tables
from benchmarks.strength_networks import NETWORKS, fit, small_images
from benchmarks.tasks import RESULTS, Key, Ledger, run
from lightning_slimga import ChannelSurgery, SparsityCallback

EPOCHS = 10
TARGET = 0.5
NEAR_ZERO = 1e-2
FIXED = {
    "small ResNet": (6.4e-3, 8e-3, 1e-2, 1.25e-2, 1.6e-2),
    "plain CNN": (8e-3, 1e-2, 1.25e-2, 1.6e-2, 2e-2),
    "MobileNet-like": (4e-3, 5e-3, 6.4e-3, 8e-3, 1e-2),
}
COUPLED = {"single γ": False, "coupled": True}


def plan(seeds: list[str]) -> list[Key]:
    """Return the fits: (network, seed, which comparison, strength or kind)."""
    steered = [(net, seed, "share", "auto") for net in NETWORKS for seed in seeds]
    fixed = [
        (net, seed, "share", str(strength))
        for net in NETWORKS
        for seed in seeds
        for strength in FIXED[net]
    ]
    coupled = [("small ResNet", seed, "coupled", kind) for seed in seeds for kind in COUPLED]
    return [*steered, *fixed, *coupled]


def work(key: Key, known: dict[str, Any]) -> dict[str, Any]:
    """Train one network and return what is to be written down."""
    network, seed, _, kind = key
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    started = time.process_time()
    if kind in COUPLED or kind == "auto":
        sparsity = SparsityCallback(
            strength="auto", target_share=TARGET, coupled=COUPLED.get(kind, False)
        )
    else:
        sparsity = SparsityCallback(strength=float(kind))
    net, test = fit(network, images(), int(seed), EPOCHS, sparsity)
    return {
        "test": test,
        "share": share(net),
        "empty_channels": empty_channels(net),
        "strength": float(sparsity.state_dict()["strength"].get("strength", sparsity.strength)),
        "cpu_seconds": round(time.process_time() - started, 1),
    }


@cache
def images() -> dict[str, TensorDataset]:
    """Return the images, read once per process."""
    return small_images()


def share(net: nn.Module) -> float:
    """Return the share of γ that is near zero."""
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    gamma = torch.cat([norm.weight.detach().abs() for norm in norms])
    return float((gamma < NEAR_ZERO).float().mean())


def empty_channels(net: nn.Module) -> float:
    """Return the share of removable channels of which every γ is near zero."""
    surgery = ChannelSurgery(net, images()["test"].tensors[0][:1])
    worst = np.zeros(surgery.num_channels)
    gammas = dict(net.named_parameters())
    for layer in surgery.layers:
        for name in layer.gamma or ():
            size = gammas[name].detach().abs().numpy()
            if len(size) == layer.num_channels:
                worst[layer.slice] = np.maximum(worst[layer.slice], size)
    return float((worst < NEAR_ZERO).mean())


def main() -> None:
    """Do what is missing and write the tables into docs/search.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", nargs="+", default=["0", "1", "2"])
    parser.add_argument("--workers", type=int, default=2, help="processes, of one thread each")
    parser.add_argument("--fresh", action="store_true", help="forget earlier results")
    options = parser.parse_args()
    header = {"epochs": EPOCHS, "target": TARGET, "near_zero": NEAR_ZERO}
    ledger = Ledger(RESULTS / "strength_auto.json", header, fresh=options.fresh)
    run(plan(options.seeds), lambda key: [], work, ledger, options.workers)
    print(strength_tables.update(ledger.record))


if __name__ == "__main__":
    main()
