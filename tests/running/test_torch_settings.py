"""What is chosen for a while, and that torch's settings are then as they were."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.backends import cuda, cudnn, mkldnn

from lightning_slimga import ChannelSurgery
from lightning_slimga.running.torch_settings import untuned

by_op = pytest.mark.skipif(
    not hasattr(cuda.matmul, "fp32_precision"), reason="torch has these settings from 2.9 on"
)


def settings() -> dict[str, Any]:
    """All that torch says of float32."""
    readers: dict[str, Callable[[], Any]] = {
        "matmul": torch.get_float32_matmul_precision,
        "cuda": lambda: cuda.matmul.allow_tf32,
        "cudnn": lambda: cudnn.allow_tf32,
    }
    if hasattr(cuda.matmul, "fp32_precision"):
        readers["all"] = lambda: torch.backends.fp32_precision
        readers["cuda.matmul"] = lambda: cuda.matmul.fp32_precision
        for backend in (cudnn, mkldnn):
            for op in ("conv", "rnn", "matmul"):
                if hasattr(backend, op):
                    owner = getattr(backend, op)
                    readers[f"{backend.__name__}.{op}"] = lambda o=owner: o.fp32_precision
    found: dict[str, Any] = {}
    for name, read in readers.items():
        try:
            found[name] = read()
        except RuntimeError:
            found[name] = "cannot be read"
    return found


def unreadable(found: dict[str, Any]) -> set[str]:
    return {name for name, value in found.items() if value == "cannot be read"}


@pytest.fixture(autouse=True)
def _own_settings() -> Iterator[None]:
    yield
    torch.set_float32_matmul_precision("highest")
    cudnn.allow_tf32 = True
    if hasattr(cuda.matmul, "fp32_precision"):
        torch.backends.fp32_precision = "none"
        cuda.matmul.fp32_precision = mkldnn.matmul.fp32_precision = "none"
        mkldnn.conv.fp32_precision = mkldnn.rnn.fp32_precision = "none"


def _high() -> None:
    torch.set_float32_matmul_precision("high")


def _medium() -> None:
    torch.set_float32_matmul_precision("medium")


def _no_tf32() -> None:
    cudnn.allow_tf32 = False


def _tf32() -> None:
    cuda.matmul.allow_tf32 = True


def _newer() -> None:
    cuda.matmul.fp32_precision = "tf32"
    mkldnn.conv.fp32_precision = "bf16"


def _newest() -> None:
    torch.backends.fp32_precision = "tf32"


class Spy(nn.Module):
    """Sees the settings while it runs, and reads the older ones as user code may."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))

    def forward(self, x: Tensor) -> Tensor:
        SEEN.append(settings())
        return self.layers(x)


SEEN: list[dict[str, Any]] = []


@pytest.mark.parametrize(
    "choose",
    [
        lambda: None,
        _high,
        _medium,
        _no_tf32,
        _tf32,
        pytest.param(_newer, marks=by_op),
        pytest.param(_newest, marks=by_op),
    ],
    ids=["default", "high", "medium", "no_tf32", "tf32", "newer", "newest"],
)
def test_float32_is_exact_while_a_network_is_analysed(choose: Callable[[], None]) -> None:
    choose()
    before = settings()
    SEEN.clear()
    surgery = ChannelSurgery(Spy(), torch.randn(3, 4))
    assert settings() == before
    assert SEEN
    for seen in SEEN:
        rounded = {name for name, value in seen.items() if value in ("tf32", "bf16", True)}
        assert rounded <= {"all"}, seen
        assert seen["matmul"] in ("highest", before["matmul"])
        assert unreadable(seen) <= unreadable(before)
    assert surgery.num_channels == 6


@pytest.mark.parametrize("choose", [_high, _no_tf32], ids=["high", "no_tf32"])
def test_settings_come_back_after_an_error(choose: Callable[[], None]) -> None:
    class Broken(Spy):
        def forward(self, x: Tensor) -> Tensor:
            raise ValueError("broken")

    choose()
    before = settings()
    with pytest.raises(ValueError, match="broken"):
        ChannelSurgery(Broken(), torch.randn(3, 4))
    assert settings() == before


@pytest.mark.parametrize("benchmark", [False, True])
def test_kernels_are_not_tuned(benchmark: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cudnn, "benchmark", benchmark)

    def fail() -> None:
        assert not cudnn.benchmark
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"), untuned():
        fail()
    assert cudnn.benchmark == benchmark
