"""How long one forward pass takes, measured: of the network, and of what could become of it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from lightning_slimga.cost.latency_model import LatencyModel
from lightning_slimga.running.calls import Call
from lightning_slimga.running.model_state import preserved
from lightning_slimga.surgery.channel_surgery import ChannelSurgery
from lightning_slimga.surgery.masking import Mask

_NETWORKS = 48
_FEWEST = 8
_SECONDS = 15.0  # after which the measurements end, if the fewest are done
_REPEATS = 5
_FEWEST_RUNS = 3


def measure_latency(model: nn.Module, calls: Sequence[Call], *, min_run_time: float = 0.2) -> float:
    """Median time of the calls in evaluation mode, on the model's device.

    Every run is timed on its own, so that a machine that does other work as well spoils few of
    them.

    Args:
        model: the network; left as it was.
        calls: what is run.
        min_run_time: seconds to measure for.

    Returns:
        Milliseconds.
    """
    synchronize = _synchronizer(model)
    with preserved(model), torch.no_grad():
        model.eval()
        times: list[float] = []
        start = time.perf_counter()
        while len(times) < _FEWEST_RUNS or time.perf_counter() - start < min_run_time:
            synchronize()
            began = time.perf_counter()
            for call in calls:
                call.run(model)
            synchronize()
            times.append(time.perf_counter() - began)
    return 1e3 * statistics.median(times[1:])  # the first one warms up


def _synchronizer(model: nn.Module) -> Callable[[], None]:
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    if device.type == "cuda":
        return lambda: torch.cuda.synchronize(device)
    return torch.mps.synchronize if device.type == "mps" else lambda: None


def _short(model: nn.Module, calls: Sequence[Call]) -> float:
    return measure_latency(model, calls, min_run_time=0.05)


class LatencyBench:
    """Measures shrunk networks beside the full one.

    Clocks change with the temperature, and other programs come and go. So each measurement of a
    network is followed by one of the full network, and their ratio is what counts; the full
    network's is the median of three that are neighbours in time.

    Args:
        surgery: the network and what can go.
        calls: what is timed.
    """

    def __init__(self, surgery: ChannelSurgery, calls: Sequence[Call]) -> None:
        self._surgery, self._calls = surgery, calls
        self._full = np.array([layer.num_channels for layer in surgery.layers], dtype=np.int64)

    def calibrated(self) -> LatencyModel:
        """Measure some dozens of networks, fewer if they are slow, and fit a formula."""
        deadline = time.monotonic() + _SECONDS
        counts = _widths(self._full, np.random.default_rng(0))
        small, full = [], []
        for done, kept in enumerate(counts):
            if done >= _FEWEST and time.monotonic() > deadline:
                break
            milliseconds, beside = self._pair(self._mask(kept))
            small.append(milliseconds)
            full.append(beside)
        full_ms = statistics.median(full)
        return LatencyModel.fitted(
            self._surgery.cost,
            self._full,
            counts[: len(small)],
            np.array(small) / _medians_of_three(full) * full_ms,
            full_ms,
        )

    def measure(self, mask: Mask, full_ms: float) -> float:
        """Return milliseconds of a network, on the clock that takes `full_ms` for the full one."""
        pairs = [self._pair(mask) for _ in range(_REPEATS)]
        return full_ms * statistics.median(small / large for small, large in pairs)

    def restored(self, state: dict[str, object]) -> LatencyModel:
        """Return the model that an earlier calibration has saved."""
        return LatencyModel.restored(self._surgery.cost, self._full, state)

    def _pair(self, mask: Mask) -> tuple[float, float]:
        with self._surgery.shrunk(mask):
            small = _short(self._surgery.model, self._calls)
        return small, _short(self._surgery.model, self._calls)

    def _mask(self, counts: npt.NDArray[np.int64]) -> Mask:
        """Which channels they are makes no difference to the clock."""
        mask = np.zeros(self._surgery.num_channels, dtype=np.bool_)
        for layer, kept in zip(self._surgery.layers, counts, strict=True):
            mask[layer.slice.start : layer.slice.start + kept] = True
        return mask


def _medians_of_three(values: Sequence[float]) -> npt.NDArray[np.float64]:
    padded = np.pad(np.array(values), 1, mode="edge")
    medians: npt.NDArray[np.float64] = np.median([padded[:-2], padded[1:-1], padded[2:]], axis=0)
    return medians


def _widths(full: npt.NDArray[np.int64], rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Kept channels of the networks to measure, shape (networks, layers), in a mixed order.

    Some are uniform, from the smallest to the largest; the others vary around uniform ones.
    """
    shares = np.geomspace(0.05, 1.0, 8)[:-1]
    uniform = np.repeat(shares[:, None], len(full), axis=1)
    varied = rng.uniform(0.05, 1.0, (_NETWORKS - len(shares) - 1, 1)) * np.exp(
        rng.normal(0.0, 0.5, (_NETWORKS - len(shares) - 1, len(full)))
    )
    kept = np.round(np.concatenate([uniform, varied]) * full).astype(np.int64)
    kept = np.concatenate([np.ones_like(full)[None], kept]).clip(1, full)
    return rng.permutation(kept)
