from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_slimga.running.calls import Call, examples_of
from lightning_slimga.running.model_state import kept_buffers
from lightning_slimga.running.recalibration import (
    moved_statistics,
    moving_statistics,
    recalibrate,
)
from tests.networks.checks import Ops


class Net(nn.Module):
    """Batch norm, instance norm, dropout, and a layer that `forward` does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.batch = nn.BatchNorm2d(3, momentum=0.2)
        self.drop = nn.Dropout(0.5)
        self.instance = nn.InstanceNorm2d(3, momentum=0.3, track_running_stats=True)
        self.unused = nn.BatchNorm2d(3)
        for norm in (self.batch, self.instance, self.unused):
            norm.running_mean.fill_(5.0)
            norm.running_var.fill_(7.0)

    def forward(self, x: Tensor) -> Tensor:
        self.flags = [m.training for m in (self, self.batch, self.drop, self.instance)]
        return self.instance(self.drop(self.batch(x)))


def inputs(count: int = 3) -> list[Tensor]:
    return [torch.randn(4, 3, 5, 5) * (i + 1) + i for i in range(count)]


def calls(batches: Sequence[Tensor]) -> list[Call]:
    return [Call("", (x,)) for x in batches]


def channels(x: Tensor) -> Tensor:
    return x.transpose(0, 1).flatten(1)


def test_statistics_are_the_mean_over_the_batches() -> None:
    net, batches = Net(), inputs()
    recalibrate(net, calls(batches))
    mean = torch.stack([channels(x).mean(1) for x in batches]).mean(0)
    variance = torch.stack([channels(x).var(1) for x in batches]).mean(0)
    torch.testing.assert_close(net.batch.running_mean, mean)
    torch.testing.assert_close(net.batch.running_var, variance)


def test_instance_norm_knows_no_cumulative_average_but_gets_one() -> None:
    net, batches = Net(), inputs()
    net.batch = nn.BatchNorm2d(3, affine=False, track_running_stats=False)
    recalibrate(net, calls(batches))
    normalised = [net.batch(x) for x in batches]
    per_image = torch.stack([x.var((2, 3)).mean(0) for x in normalised])
    torch.testing.assert_close(net.instance.running_var, per_image.mean(0))
    assert net.instance.running_mean.abs().max() < 1e-5


def test_layers_that_no_call_reaches_keep_their_statistics() -> None:
    net = Net()
    recalibrate(net, calls(inputs()))
    assert net.unused.running_mean.tolist() == [5.0] * 3
    assert net.unused.running_var.tolist() == [7.0] * 3


def test_modes_and_momenta_come_back() -> None:
    net = Net().train()
    net.drop.eval()
    recalibrate(net, calls(inputs()))
    assert net.flags == [False, True, False, True]
    assert [m.training for m in (net, net.batch, net.drop, net.instance)] == [
        True,
        True,
        False,
        True,
    ]
    assert (net.batch.momentum, net.instance.momentum, net.unused.momentum) == (0.2, 0.3, 0.1)


def test_without_calls_nothing_happens() -> None:
    net = Net()
    recalibrate(net, [])
    assert net.batch.running_mean.tolist() == [5.0] * 3


def test_average_gets_the_statistics_and_how_often_they_were_taken() -> None:
    net, seen = Net(), []

    def average(tensors: Sequence[Tensor], weights: Sequence[int]) -> None:
        seen.append(list(weights))
        for tensor in tensors:
            tensor.fill_(9.0)

    recalibrate(net, calls(inputs(2)), average)
    assert seen == [[2, 2, 2, 2, 0, 0]]
    assert net.batch.running_mean.tolist() == net.instance.running_var.tolist() == [9.0] * 3
    recalibrate(net, [], average)  # a rank without data must take part all the same
    assert seen[1] == [0, 0, 0, 0, 0, 0]


def test_others_than_those_named_keep_theirs_and_compute_with_them() -> None:
    net, batches = Net(), inputs()
    recalibrate(net, calls(batches), only={"instance"})
    assert net.flags == [False, False, False, True]
    assert net.batch.running_mean.tolist() == [5.0] * 3
    normalised = [(x - 5) / (7 + net.batch.eps) ** 0.5 for x in batches]
    mean = torch.stack([channels(x).mean(1) for x in normalised]).mean(0)
    torch.testing.assert_close(net.instance.running_mean, mean)


def test_all_layers_take_part_in_an_average_over_processes() -> None:
    """Each process names its own: what all of them hand in must be of one shape."""
    weights: list[list[int]] = []
    for only in ({"instance"}, {"batch"}, set()):
        recalibrate(Net(), calls(inputs(2)), lambda _, w: weights.append(list(w)), only=only)
    assert weights == [[0, 0, 2, 2, 0, 0], [2, 2, 0, 0, 0, 0], [0] * 6]


def test_layers_whose_statistics_move_are_found() -> None:
    net = Net().train()
    net.batch.eval()
    assert moving_statistics(net) == {"instance", "unused"}
    net.instance.momentum = 0.0
    assert moving_statistics(net) == {"unused"}
    with moved_statistics(net) as moved:
        net(inputs()[0])
    assert moved == set()
    net.batch.train()
    with moved_statistics(net) as moved:
        net(inputs()[0])
    assert moved == {"batch"}


@pytest.mark.parametrize("error", [None, ZeroDivisionError])
def test_recalibrated_restores_every_buffer(error: Any) -> None:
    net = Net()
    before = {name: b.clone() for name, b in net.named_buffers()}
    try:
        with kept_buffers(net):
            recalibrate(net, calls(inputs()))
            assert not torch.equal(net.batch.running_mean, before["batch.running_mean"])
            if error:
                raise error
    except ZeroDivisionError:
        pass
    for name, buffer in net.named_buffers():
        assert torch.equal(buffer, before[name]), name


class Twice(nn.Module):
    """Calls its norm twice; past its hooks, where `direct`."""

    def __init__(self, norm: nn.Module, *, direct: bool = False) -> None:
        super().__init__()
        self.norm, self.direct = norm, direct

    def forward(self, x: Tensor) -> Tensor:
        call = self.norm.forward if self.direct else self.norm
        return call(x) + call(3 * x + 1)


@pytest.mark.parametrize(
    ("kind", "direct"),
    [(nn.BatchNorm2d, False), (nn.BatchNorm2d, True), (nn.InstanceNorm2d, False)],
)
def test_a_layer_that_is_called_twice_averages_over_all_calls(kind: Any, direct: bool) -> None:
    net, batches = Twice(kind(3, track_running_stats=True), direct=direct), inputs()
    net.norm.running_mean.fill_(float("nan"))
    recalibrate(net, calls(batches))
    mean = torch.stack([channels(y).mean(1) for x in batches for y in (x, 3 * x + 1)]).mean(0)
    torch.testing.assert_close(net.norm.running_mean, mean)


def test_an_instance_norm_that_no_call_reaches_keeps_its_statistics() -> None:
    net = Net()
    net.unused = nn.InstanceNorm2d(3, track_running_stats=True)
    net.unused.running_mean.fill_(5.0)
    recalibrate(net, calls(inputs()))
    assert net.unused.running_mean.tolist() == [5.0] * 3
    assert net.unused.running_var.tolist() == [1.0] * 3


def test_nothing_is_left_after_an_exception() -> None:
    net = Net()
    with pytest.raises(RuntimeError):
        recalibrate(
            net, [Call("", (torch.randn(4, 3, 5, 5),)), Call("", (torch.randn(4, 2, 5, 5),))]
        )
    assert all(module.training for module in net.modules())
    assert (net.batch.momentum, net.instance.momentum, net.unused.momentum) == (0.2, 0.3, 0.1)
    assert not any(module._forward_pre_hooks for module in net.modules())


def test_a_gpu_is_not_waited_for() -> None:
    """Each number that Python asks of a tensor would hold it up."""
    net = nn.Sequential(nn.BatchNorm2d(3), nn.InstanceNorm2d(3, track_running_stats=True))
    with Ops() as ops:
        recalibrate(net, calls(inputs()))
    assert "aten::native_batch_norm" in ops.names
    assert not {"aten::_local_scalar_dense", "aten::equal", "aten::item"} & set(ops.names)


def test_compiled_code_is_not_compiled_anew() -> None:
    torch.compiler.reset()  # what other tests have compiled counts toward a limit
    graphs = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    net = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU())
    compiled = nn.Sequential(torch.compile(net, backend=backend))
    for size in (4, 5, 6):
        recalibrate(compiled, calls([torch.randn(size, 3, 2, 2) + 1]))
        examples_of(compiled, calls([torch.randn(size, 3, 2, 2)]), 2, training=True)
    assert not graphs
    assert net[0].running_mean.mean() > 0.3
    compiled(torch.randn(4, 3, 2, 2))
    assert graphs
