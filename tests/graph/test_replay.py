"""A second pass that computes less must teach the same, and be the same to whoever looks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from lightning_slimga.graph.replay import Replay
from lightning_slimga.surgery.channel_surgery import ChannelSurgery
from tests.networks.checks import (
    assert_exact,
    assert_macs_exact,
    assert_same,
    everything_replayed,
    random_mask,
    randomise,
    snapshot,
    train_a_step,
)

ATEN = torch.ops.aten
PLACE = ("layer", 1, "aten::mm")


@pytest.fixture(autouse=True)
def _everything_is_heavy() -> Iterator[None]:
    with everything_replayed():
        yield


def second(*args: Tensor, place: tuple[str, int, str] = PLACE) -> Tensor:
    """What the second pass returns for ``mm`` after the first one has multiplied these."""
    replay = Replay()
    replay.run(PLACE, ATEN.mm.default, (torch.ones(3, 4), torch.ones(4, 5)), {})
    replay.second = True
    return replay.run(place, ATEN.mm.default, args, {})


def test_the_result_of_the_first_pass_is_taken_over() -> None:
    assert torch.equal(second(torch.zeros(3, 4), torch.zeros(4, 5)), torch.full((3, 5), 4.0))


def test_other_shapes_places_and_kinds_are_computed() -> None:
    assert torch.equal(second(torch.zeros(2, 4), torch.zeros(4, 5)), torch.zeros(2, 5))
    elsewhere = second(torch.zeros(3, 4), torch.zeros(4, 5), place=("layer", 2, "aten::mm"))
    assert torch.equal(elsewhere, torch.zeros(3, 5))
    doubles = second(torch.zeros(3, 4).double(), torch.zeros(4, 5).double())
    assert doubles.dtype is torch.float64
    with pytest.raises(RuntimeError):
        second(torch.zeros(3, 4), torch.zeros(5, 5))


def multiplied(replay: Replay) -> Tensor:
    return replay.run(PLACE, ATEN.mm.default, (torch.ones(3, 4), torch.ones(4, 5)), {})


WRITES = {
    "in place": lambda run, y: run(ATEN.zero_.default, (y,)),
    "into a view": lambda run, y: run(ATEN.add_.Tensor, (y.view(15)[2:4], 1)),
    "out": lambda run, y: run(ATEN.mm.out, (torch.ones(3, 2), torch.ones(2, 5)), {"out": y}),
    "a list": lambda run, y: run(ATEN._foreach_neg_.default, ([torch.ones(2), y],)),
}


@pytest.mark.parametrize("way", WRITES)
def test_a_result_is_handed_on_as_it_was_before_it_was_written_into(way: str) -> None:
    replay = Replay()
    y = multiplied(replay)
    WRITES[way](lambda func, args, kwargs=None: replay.run(None, func, args, kwargs or {}), y)
    replay.second = True
    assert torch.equal(multiplied(replay), torch.full((3, 5), 4.0))


def turned_round(y: Tensor) -> None:
    numbers = y.numpy()
    numbers[:] = numbers[::-1].copy()


def in_new_memory(y: Tensor) -> None:
    memory = y.untyped_storage()
    size = memory.nbytes()
    for new in (0, size):
        memory.resize_(new)


UNSEEN = {
    "numpy": lambda y: y.numpy().fill(0),
    "the last byte": lambda y: y.numpy().view("uint8").__setitem__((-1, -1), 0),
    "another order": turned_round,
    "memory of its own": in_new_memory,
}


@pytest.mark.parametrize("way", UNSEEN)
@pytest.mark.parametrize("writes", [True, False])
def test_what_was_written_past_all_ops_is_computed(way: str, writes: bool) -> None:
    replay = Replay()
    a, b = torch.arange(256.0).view(64, 4), torch.ones(4, 100)
    y = replay.run(PLACE, ATEN.mm.default, (a, b), {})
    UNSEEN[way](y)
    if writes:
        replay.run(None, ATEN.add_.Tensor, (y, 1), {})
    del y
    replay.second = True
    assert torch.equal(replay.run(PLACE, ATEN.mm.default, (a, b), {}), a @ b)


def test_a_result_that_nobody_writes_into_is_not_copied() -> None:
    replay = Replay()
    place = multiplied(replay).data_ptr()
    replay.second = True
    again = multiplied(replay)
    assert again.data_ptr() == place
    replay.run(None, ATEN.zero_.default, (again,), {})
    assert torch.equal(multiplied(replay), torch.full((3, 5), 4.0))  # once only: computed


HOLDS = {
    "itself": (lambda y: y, lambda held: held),
    "a view": (lambda y: y[1:], lambda held: held),
    "numpy": (lambda y: y.detach().numpy(), lambda held: held),
    "its memory": (
        lambda y: y.untyped_storage(),
        lambda held: torch.empty(0).set_(held, 0, (15,)),
    ),
}
"""What somebody may hold of a result, and its numbers."""


@pytest.mark.parametrize("way", HOLDS)
def test_what_somebody_still_has_is_not_handed_on(way: str) -> None:
    replay = Replay()
    hold, numbers = HOLDS[way]
    held = hold(multiplied(replay))
    replay.second = True
    multiplied(replay).zero_()
    assert (numbers(held) == 4).all()


def test_memory_that_was_taken_away_is_not_read() -> None:
    replay = Replay()
    multiplied(replay).untyped_storage().resize_(0)
    replay.second = True
    assert torch.equal(multiplied(replay), torch.full((3, 5), 4.0))


def test_results_of_inference_mode_can_be_written_into() -> None:
    replay = Replay()
    with torch.inference_mode():
        multiplied(replay)
    replay.second = True
    assert multiplied(replay).add_(1).sum() == 5 * 15


def test_other_ops_are_computed() -> None:
    replay = Replay()
    for replay.second in (False, True):
        assert replay.run(PLACE, ATEN.relu.default, (torch.ones(2),), {}).sum() == 2


def test_training_computes_nothing_that_evaluation_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two linear layers: traced and shrunk once each; training and masking compute none."""
    model, x = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)), torch.rand(2, 6)
    computed = []
    run = Replay.run

    def watched(self: Replay, place: object, func: Callable[..., Tensor], *rest: object) -> object:
        def counted(*args: object) -> Tensor:
            computed.append(place)
            return func(*args)

        counted.overloadpacket, counted._schema = func.overloadpacket, func._schema
        again = getattr(func, "__name__", "") == "counted"  # handed on to another replay
        return run(self, place, func if again else counted, *rest)

    monkeypatch.setattr(Replay, "run", watched)
    ChannelSurgery(model, x)
    assert len([place for place in computed if "addmm" in place[2]]) == 2 * 2


class Asks(nn.Module):
    """Goes another way in training if its activations say so."""

    def __init__(self, positive: Callable[[Tensor], bool]) -> None:
        super().__init__()
        self.positive = positive
        self.first, self.extra, self.head = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        if self.training and self.positive(x):
            x = x + self.extra(x)
        return self.head(x)


WAYS = {
    "item": lambda x: x.mean(1).max().item() > 0,
    "numpy": lambda x: x.detach().numpy().mean() > 0,
    "tolist": lambda x: sum(x.flatten().tolist()) > 0,
}


@pytest.mark.parametrize("way", WAYS)
def test_a_network_that_looks_at_its_values_is_seen_as_it_runs(way: str) -> None:
    model, x = Asks(WAYS[way]), torch.rand(5, 6)
    randomise(model)
    surgery = ChannelSurgery(model, x)
    keep = random_mask(surgery)
    assert_macs_exact(surgery, x, keep)
    assert_exact(surgery, x, keep, training=True)
    surgery.apply(keep)
    train_a_step(model, x, torch.optim.SGD(model.parameters(), lr=0.1))


@cache
def table(owner: nn.Module) -> Tensor:
    """What a program computes once, from its parameters, and keeps for ever."""
    return owner.text(torch.eye(6)).detach()


class Remembers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.text, self.first, self.second = nn.Linear(6, 8), nn.Linear(6, 16), nn.Linear(16, 8)
        self.text.requires_grad_(False)
        self.kept = SimpleNamespace()

    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self.kept, "table"):
            self.kept.table = self.text(torch.eye(6))
        y = self.second(self.first(x).relu())
        return y @ table(self).t() + y @ self.kept.table.t()


def test_what_a_program_keeps_is_computed() -> None:
    model, x = Remembers(), torch.rand(2, 6)
    ChannelSurgery(model, x)
    wanted = model.text(torch.eye(6))
    assert torch.equal(table(model), wanted)
    assert torch.equal(model.kept.table, wanted)


class Swaps(nn.Module):
    """Runs with other weights for a while, and looks at a value meanwhile (a quantised layer)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.first.weight
        kept = weight.detach().clone()
        weight.data.copy_(kept.sign())
        x = self.first(x)
        assert x.abs().max().item() > 0
        weight.data.copy_(kept)
        return self.second(x.relu())


def test_a_network_that_swaps_its_weights_gets_them_back() -> None:
    model, x = Swaps(), torch.rand(2, 6)
    before = snapshot(model)
    ChannelSurgery(model, x)
    assert_same(before, snapshot(model))


class Sizes(nn.Module):
    """Scales by one number in evaluation, and by one for each channel in training."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        scale = torch.arange(1.0, 1.0 + (x.shape[1] if self.training else 1))
        return self.second(x * scale.view(1, -1))


def test_what_only_training_shows_is_learnt_from_training() -> None:
    model, x = Sizes(), torch.rand(2, 6)
    surgery = ChannelSurgery(model, x)
    assert not surgery.layers
    assert any("meets a tensor without channels" in why for *_, why in surgery.frozen)
