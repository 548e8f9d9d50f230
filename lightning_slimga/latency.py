"""How long one forward pass takes, measured."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.utils.benchmark import Timer

from lightning_slimga.calls import Call
from lightning_slimga.model_state import preserved


def measure_latency(model: nn.Module, calls: Sequence[Call], *, min_run_time: float = 0.2) -> float:
    """Median time of the calls in evaluation mode, on the model's device.

    Args:
        model: the network; left as it was.
        calls: what is run.
        min_run_time: seconds to measure for.

    Returns:
        Milliseconds.
    """

    def run() -> None:
        for call in calls:
            call.run(model)

    with preserved(model), torch.no_grad():
        model.eval()
        run()
        timer = Timer("run()", globals={"run": run}, num_threads=torch.get_num_threads())
        return float(1e3 * timer.blocked_autorange(min_run_time=min_run_time).median)
