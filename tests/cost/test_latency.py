from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor, nn

from lightning_slimga.cost.latency import measure_latency
from lightning_slimga.running.calls import Call


class Sleeper(nn.Module):
    """Takes a known time, and notes how it is run."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.drop = nn.Dropout()
        self.seconds = seconds

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training
        assert not torch.is_grad_enabled()
        time.sleep(self.seconds)
        return self.drop(self.norm(x))


@pytest.mark.parametrize("seconds", [0.002, 0.01])
def test_milliseconds_of_one_forward_pass(seconds: float) -> None:
    found = measure_latency(Sleeper(seconds), [Call("", (torch.zeros(1, 2),))], min_run_time=0.05)
    assert 1000 * seconds <= found < 1000 * seconds + 50


def test_several_calls_are_added_up() -> None:
    call = Call("", (torch.zeros(1, 2),))
    assert measure_latency(Sleeper(0.005), [call, call, call], min_run_time=0.01) >= 15


def test_the_network_is_left_as_it_was() -> None:
    model = Sleeper(0.0)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    random = torch.get_rng_state()
    measure_latency(model, [Call("", (torch.zeros(1, 2),))], min_run_time=1e-3)
    assert model.training
    assert model.drop.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
