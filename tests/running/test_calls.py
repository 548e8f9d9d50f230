from __future__ import annotations

from enum import Enum
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_slimga.running.calls import (
    MOST_VALUES,
    Call,
    calls_from_example,
    counted_once,
    examples_of,
    narrowed,
    representatives,
    rows,
)

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
    assert narrowed(call, 2) == (call, None)


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
    assert examples_of(Net(), [], 2, training=True) == ([], None)


class Domain(Enum):
    PHOTO = 1
    SKETCH = 2


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (0, 1),
        (1, True),
        ("photo", "sketch"),
        (Domain.PHOTO, Domain.SKETCH),
        ((0, 1), (0, 2)),
        ([4, 4], [2, 4]),
        ({"scale": 1}, {"scale": 2}),
        (torch.tensor(0), torch.tensor(1)),
        (torch.Size([2, 2]), torch.Size([4, 2])),
        (torch.float32, torch.float64),
        (None, 0),
    ],
)
def test_choices_make_kinds(one: Any, other: Any) -> None:
    calls = [Call("", (X, choice)) for choice in (one, other, one, other)]
    assert representatives(calls) == calls[:2]


@pytest.mark.parametrize("made", [int, str, float, torch.tensor, lambda i: (3, i)])
def test_what_differs_in_every_call_is_no_choice(made: Any) -> None:
    calls = [Call("", (X, made(i)), {"domain": i % 2}) for i in range(3 * MOST_VALUES)]
    assert representatives(calls) == calls[:2]


def test_many_choices_together_are_bounded() -> None:
    calls = [Call("", (X, i, j)) for i in range(MOST_VALUES) for j in range(MOST_VALUES)]
    assert len(representatives(calls)) == 2 * MOST_VALUES + 1


def test_calls_that_reach_further_modules_are_kept() -> None:
    reached = [{"a"}, {"a"}, {"a", "b"}, {"b"}, {"c"}]
    calls = [Call("", (X,), reached=frozenset(names)) for names in reached]
    kept = representatives(calls)
    assert [id(call) for call in kept] == [id(calls[i]) for i in (0, 2, 4)]


def test_the_first_call_of_a_module_counts() -> None:
    calls = [Call("a"), Call("b"), Call("a", (1,)), Call("c", counted=False)]
    assert [call.counted for call in counted_once(calls)] == [True, True, False, False]


def at(samples: int) -> dict[str, tuple[Any, ...]]:
    """Arguments as they are with so many samples, by what they are."""
    x = torch.zeros(samples, 2)
    return {
        "rows": (x, torch.zeros(7, 7)),
        "sequence first": (torch.zeros(2, samples, 4), torch.zeros(2, 2)),
        "two views": (torch.cat([x, x]),),
        "a list": ([torch.zeros(3, 4)] * samples,),
        "nodes": (torch.zeros(samples**2 + 1, 4),),
        "both": (x, torch.zeros(samples * 9, 4)),
        "nothing": ("text",),
    }


@pytest.mark.parametrize("what", at(1))
def test_rows_are_what_grows_with_the_samples(what: str) -> None:
    calls = [Call("", at(2)[what])], [Call("", at(3)[what])]
    assert rows(*calls, 2, 3) == (4 if what == "two views" else 2)
    assert rows(calls[0], calls[0], 2, 2) == 2


class Routed(nn.Module):
    """A sample goes to the expert that its first number names."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(2, 2) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.experts[int(row[0])](row) for row in x])


@pytest.mark.parametrize(("order", "needed"), [([0, 1, 2, 3], 8), ([0, 0] * 10 + [1, 2, 3], 23)])
def test_more_samples_where_few_do_not_reach_all_experts(order: list[int], needed: int) -> None:
    x = torch.tensor([[float(i), 0.0] for i in order]).repeat(5, 1)[: 5 * len(order)]
    names = frozenset({"", "experts.0", "experts.1", "experts.2", "experts.3"})
    _, samples = examples_of(Routed(), [Call("", (x,), reached=names)], 2, training=False)
    assert samples == (8 if needed == 8 else 32)
