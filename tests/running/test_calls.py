from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_slimga.running.calls import Call, calls_from_example, examples_of, narrowed

X = torch.arange(12.0).view(6, 2)


class Net(nn.Module):
    def __init__(self, smallest: int = 1) -> None:
        super().__init__()
        self.part = nn.Linear(2, 3)
        self.norm = nn.BatchNorm1d(3)
        self.smallest = smallest
        self.modes: list[bool] = []

    def forward(self, x: Tensor, *, scale: float = 1.0, flag: bool = False) -> Tensor:
        self.modes.append(self.training)
        if len(x) < self.smallest:
            raise RuntimeError("too few")
        return self.norm(self.part(x)) * scale


def test_a_call_runs_the_named_module() -> None:
    net = Net().eval()
    assert torch.equal(Call("part", (X,)).run(net), net.part(X))
    assert torch.equal(Call("", (X,), {"scale": 2.0}).run(net), net(X, scale=2.0))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (X, (Call("", (X,)),)),
        ((X, 2), (Call("", (X, 2)),)),
        ([X], (Call("", (X,)),)),
        ({"x": X}, (Call("", (), {"x": X}),)),
        (Call("part", (X,)), (Call("part", (X,)),)),
        ([Call("a"), Call("b")], (Call("a"), Call("b"))),
    ],
)
def test_example_inputs(given: Any, expected: tuple[Call, ...]) -> None:
    assert str(calls_from_example(given)) == str(expected)


def test_no_example_inputs() -> None:
    with pytest.raises(TypeError, match=r"`example_inputs` to be a Tensor, .* but got None"):
        calls_from_example(None)


@pytest.mark.parametrize(("samples", "kept"), [(1, 1), (2, 2), (6, 6), (9, 6)])
def test_narrowed_keeps_the_first_samples(samples: int, kept: int) -> None:
    call = Call("part", (X, {"deep": [X + 1]}), {"scale": torch.tensor(2.0), "name": "n"})
    small, count = narrowed(call, samples)
    assert count == kept
    assert torch.equal(small.args[0], X[:kept])
    assert torch.equal(small.args[1]["deep"][0], X[:kept] + 1)
    assert small.kwargs == call.kwargs
    assert small.module == "part"
    assert len(call.args[0]) == 6


@pytest.mark.parametrize("arguments", [(X, X[:4]), ("text",), (torch.tensor(1.0),)])
def test_what_has_no_common_batch_stays_as_it_is(arguments: tuple[Any, ...]) -> None:
    call = Call("", arguments)
    assert narrowed(call, 2) == (call, 1)


def test_examples_are_one_of_each_kind_on_few_samples() -> None:
    calls = [
        Call("", (X,), {"flag": False}),
        Call("", (X + 1,), {"flag": False}),
        Call("", (X,), {"flag": True}),
        Call("part", (X,)),
        Call("", (X,), {"flag": False, "scale": 2.0}),
        Call("", (X,), {"flag": False, "scale": 3.0}),
    ]
    found, samples = examples_of(Net(), calls, 2, training=False)
    assert samples == 2
    assert [(c.module, c.kwargs) for c in found] == [
        (calls[i].module, calls[i].kwargs) for i in (0, 2, 3, 4)
    ]
    assert all(len(c.args[0]) == 2 for c in found)


@pytest.mark.parametrize("training", [True, False])
def test_a_network_that_needs_the_whole_batch_gets_it(training: bool) -> None:
    net = Net(smallest=5)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    found, samples = examples_of(net, [Call("part", (X,)), Call("", (X,))], 2, training=training)
    assert samples == 6
    assert all(torch.equal(c.args[0], X) for c in found)
    assert net.training
    assert net.modes == []
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_no_calls() -> None:
    assert examples_of(Net(), [], 2, training=True) == ([], 1)
