"""A made-up run whose numbers are easy to check by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lightning_slimga.report import LayerRow, PruningReport


def example_report(**changes: Any) -> PruningReport:
    rng = np.random.default_rng(0)
    layers = [
        LayerRow("stem", 24, 12, 1_000_000, 500_000, 240, 120),
        LayerRow("stage1.0.conv1", 48, 12, 2_000_000, 250_000, 10_000, 1_250),
        LayerRow("stage2.0.conv1", 96, 24, 2_720_352, 250_000, 163_602, 8_630),
    ]
    history = [
        {
            "generation": g,
            "evaluations": 24 * g,
            "best": 0.75 + 0.08 * (1 - math.exp(-g / 3)),
            "mean": 0.68 + 0.12 * (1 - math.exp(-g / 3)),
            "std": 0.03 / g,
            "seconds": 12.5,
        }
        for g in range(1, 10)
    ]
    gamma = {row.name: rng.exponential(0.2, row.channels_before).tolist() for row in layers}
    kept = {row.name: sorted(gamma[row.name], reverse=True)[: row.channels_after] for row in layers}
    values: dict[str, Any] = {
        "monitor": "val_acc",
        "mode": "max",
        "budget": {"macs": 0.35},
        "layers": layers,
        "macs": (5_720_352, 1_000_000),
        "params": (173_842, 10_000),
        "history": history,
        "seeds": {
            "gamma threshold": 0.671,
            "gamma per MAC": 0.169,
            "uniform": 0.683,
            "random search": 0.749,
        },
        "search_fitness": 0.8262,
        "gamma_before": gamma,
        "gamma_after": kept,
        "frozen": [
            ("fc.weight", "model output (op aten.addmm in fc)"),
            ("norm", "LayerNorm"),
            ("fc.bias", "model output"),
        ],
        "settings": {"population_size": 24, "seed": 0},
        "latency_ms": (1.25, 0.5),
        "seconds": {"search": 61.24, "forward": 58.0},
    }
    return PruningReport(**{**values, **changes})
