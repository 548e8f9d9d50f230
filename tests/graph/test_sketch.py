"""Passes without values: what is drawn must change no verdict, and leave nothing behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from lightning_slimga.graph.sketch import Sketch, ValuesNeeded, drawn_if_possible
from lightning_slimga.surgery import ChannelSurgery
from tests.networks.checks import (
    assert_exact,
    assert_macs_exact,
    everything_drawn,
    random_mask,
    randomise,
)

ATEN = torch.ops.aten


@pytest.fixture(autouse=True)
def _everything_is_heavy() -> Iterator[None]:
    with everything_drawn():
        yield


def convolution(x: Tensor, weight: Tensor) -> tuple[object, ...]:
    return (x, weight, None, [2, 1], [1, 0], [1, 1], False, [0, 0], 1)


@pytest.mark.parametrize(
    ("func", "args"),
    [
        (ATEN.convolution.default, convolution(torch.rand(2, 3, 9, 8), torch.rand(5, 3, 3, 2))),
        (ATEN.addmm.default, (torch.rand(4), torch.rand(3, 6), torch.rand(6, 4))),
        (ATEN.bmm.default, (torch.rand(2, 3, 6), torch.rand(2, 6, 4))),
        (ATEN.cat.default, ([torch.rand(2, 3), torch.rand(2, 5)], 1)),
        (ATEN.max_pool2d_with_indices.default, (torch.rand(1, 3, 8, 8), [2, 2])),
        (ATEN.relu.default, (torch.rand(4, 3).t(),)),
        (ATEN.argmax.default, (torch.rand(4, 3), 1)),
    ],
)
def test_shapes_strides_and_kinds_are_those_of_the_op(func: object, args: tuple) -> None:
    drawing = Sketch()
    found = drawing.run(func, args, {}, learned=True)
    wanted = func(*args)
    assert drawing.drawn
    assert type(found) is type(wanted)
    pairs = zip(found, wanted, strict=True) if isinstance(wanted, tuple) else [(found, wanted)]
    for a, b in pairs:
        assert (a.shape, a.stride(), a.dtype, a.device) == (b.shape, b.stride(), b.dtype, b.device)
        assert not a.any()


def test_an_op_in_place_returns_what_it_was_given() -> None:
    x, drawing = torch.rand(3, 4), Sketch()
    assert drawing.run(ATEN.add_.Tensor, (x, torch.rand(4)), {}, learned=True) is x


def test_a_size_that_does_not_fit_is_an_error_without_values_too() -> None:
    x, weight = torch.rand(2, 3, 9, 8), torch.rand(5, 4, 3, 2)
    with pytest.raises(RuntimeError):
        Sketch().run(ATEN.convolution.default, convolution(x, weight), {}, learned=True)
    with pytest.raises(RuntimeError):
        Sketch().run(ATEN.add_.Tensor, (torch.rand(3, 4), torch.rand(3)), {}, learned=True)


def test_a_norm_is_computed() -> None:
    """Torch's meta kernel returns saved statistics that the real one leaves out."""
    drawing, ones = Sketch(), torch.ones(3)
    args = (torch.rand(2, 3, 4), ones, ones, ones, ones, False, 0.1, 1e-5)
    out = drawing.run(ATEN.native_batch_norm.default, args, {}, learned=True)
    assert not drawing.drawn
    assert [t.shape for t in out] == [t.shape for t in ATEN.native_batch_norm.default(*args)]


@pytest.mark.parametrize(
    ("func", "args"),
    [
        (ATEN._local_scalar_dense.default, (torch.zeros(()),)),
        (ATEN.nonzero.default, (torch.zeros(3),)),
        (ATEN.index.Tensor, (torch.zeros(3), [torch.zeros(3, dtype=torch.bool)])),
        (ATEN.equal.default, (torch.zeros(3), torch.zeros(3))),
    ],
)
def test_whoever_asks_for_values_ends_the_pass(func: object, args: tuple) -> None:
    drawing = Sketch()
    drawing.run(func, args, {}, learned=True)  # nothing has been drawn: values are there
    drawing.run(ATEN.relu.default, (torch.rand(3),), {}, learned=True)
    with pytest.raises(ValuesNeeded):
        drawing.run(func, args, {}, learned=True)
    assert drawing.refused


def test_an_index_of_numbers_asks_for_nothing() -> None:
    drawing = Sketch()
    drawing.run(ATEN.relu.default, (torch.rand(3),), {}, learned=True)
    drawing.run(ATEN.index.Tensor, (torch.rand(3), [torch.tensor([0, 2])]), {}, learned=True)


def test_a_pass_is_repeated_with_values_whoever_swallows_the_question() -> None:
    seen = []

    def attempt(drawing: Sketch | None) -> str:
        seen.append(drawing)
        if drawing is not None:
            drawing.refused = True
        return "with values" if drawing is None else "without"

    assert drawn_if_possible(attempt, True) == "with values"
    assert len(seen) == 2
    assert drawn_if_possible(attempt, False) == "with values"


class Asks(nn.Module):
    """Decides by its own activations, in a way that the argument chooses."""

    def __init__(self, positive: Callable[[Tensor], bool]) -> None:
        super().__init__()
        self.positive = positive
        self.first, self.second = nn.Linear(6, 16), nn.Linear(16, 16)
        self.wide, self.head = nn.Linear(16, 24), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        if self.positive(x):
            x = self.second(x).relu()
        return self.head(self.wide(x).relu())


def swallowed(x: Tensor) -> bool:
    try:
        return bool(x.sum() > 0)
    except:  # noqa: E722  (what bad code does)
        return False


WAYS = {
    "item": lambda x: x.sum().item() > 0,
    "bool": lambda x: bool((x > 0).any()),
    "numpy": lambda x: x.detach().numpy().sum() > 0,
    "tolist": lambda x: sum(x.flatten().tolist()) > 0,
    "swallowed": swallowed,
}


@pytest.mark.parametrize("way", WAYS)
def test_a_network_that_looks_at_its_values_is_seen_as_it_runs(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = Asks(WAYS[way]), torch.rand(5, 6)
    randomise(model)
    surgery = ChannelSurgery(model, x)
    monkeypatch.setattr(
        Sketch, "run", lambda self, func, args, kwargs, learned: func(*args, **kwargs)
    )
    computed = ChannelSurgery(model, x)
    assert surgery.layers == computed.layers
    assert surgery.frozen == computed.frozen
    assert {layer.name for layer in surgery.layers} >= {"second", "wide"}
    keep = random_mask(surgery)
    assert_macs_exact(surgery, x, keep)
    assert_exact(surgery, x, keep)


@cache
def table(owner: nn.Module) -> Tensor:
    """A table that is made once and for ever, by a heavy op, from a buffer."""
    return owner.steps[:, None] @ owner.steps[None]


class Remembers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)
        self.register_buffer("steps", torch.arange(1.0, 9.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x) @ table(self))


def test_what_a_program_keeps_is_computed() -> None:
    model, x = Remembers(), torch.rand(2, 6)
    ChannelSurgery(model, x)
    assert torch.equal(table(model), model.steps[:, None] @ model.steps[None])


def test_nothing_is_computed_where_shapes_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """One pass of the shrunk and one of the masked network have values; the other three none."""
    model, x = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)), torch.rand(2, 6)
    drawn = []
    draw = Sketch._draw
    monkeypatch.setattr(
        Sketch, "_draw", lambda self, *rest: drawn.append(rest[0]) or draw(self, *rest)
    )
    surgery = ChannelSurgery(model, x)
    assert len(drawn) == 3 * 3
    assert len(surgery.layers) == 1
