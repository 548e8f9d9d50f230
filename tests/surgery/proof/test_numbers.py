"""Numbers that modules keep about sizes under any name are found by trying."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_slimga import ChannelSurgery
from lightning_slimga.graph.trace import OpRecord, SizeAttribute
from lightning_slimga.surgery.proof.numbers import Numbers
from tests.networks.checks import (
    assert_exact,
    assert_macs_exact,
    random_mask,
    randomise,
    train_a_step,
)


class Product(nn.Module):
    """A linear layer by hand, viewed by a number of its own."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.nf = out
        self.weight = nn.Parameter(torch.randn(width, out) / 4)
        self.bias = nn.Parameter(torch.zeros(out))

    def forward(self, x: Tensor) -> Tensor:
        flat = torch.addmm(self.bias, x.flatten(0, -2), self.weight)
        return flat.view(*x.shape[:-1], self.nf)


class Heads(nn.Module):
    """Attention with many heads of a name that nobody knows, before or behind the tokens."""

    def __init__(self, early: bool) -> None:
        super().__init__()
        self.parts, self.early = 8, early
        self.q, self.k, self.v, self.o = (nn.Linear(32, 32) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = (f(x).view(n, t, self.parts, -1) for f in (self.q, self.k, self.v))
        if self.early:
            q, k, v = (y.transpose(1, 2) for y in (q, k, v))
            mixed = torch.softmax(q @ k.transpose(2, 3) / 2, -1) @ v
            return self.o(mixed.transpose(1, 2).flatten(2))
        scores = torch.softmax(torch.einsum("nthe,nshe->nhts", q, k) / 2, -1)
        return self.o(torch.einsum("nhts,nshe->nthe", scores, v).flatten(2))


class Shortcut(nn.Module):
    """A block whose shortcut is filled up with zeros, as many as a number of its own says."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.planes = [width, out]
        self.a, self.b = nn.Conv2d(width, out, 3, 2, 1), nn.Conv2d(out, out, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        y, x = self.b(torch.relu(self.a(x))), x[:, :, ::2, ::2]
        missing = x.new_zeros(x.shape[0], self.planes[1] - x.shape[1], *x.shape[2:])
        return torch.relu(y + torch.cat([x, missing], 1))


class State(nn.Module):
    """A recurrent layer between others, whose first state the network makes itself."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.layers = 8, 2
        self.stem, self.cell, self.head = nn.Linear(5, 8), nn.GRU(8, 8, 2), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros(self.layers, x.shape[1], self.width).to(x)
        return self.head(self.cell(torch.tanh(self.stem(x)), state)[0][-1])


def _image(width: int) -> nn.Module:
    stem = nn.Sequential(nn.Conv2d(3, width, 3, 1, 1), nn.ReLU())
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, 3))
    return nn.Sequential(stem, Shortcut(width, 2 * width), Shortcut(2 * width, 4 * width), head)


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], list[int]]] = {
    "view": (lambda: nn.Sequential(Product(8, 12), nn.ReLU(), Product(12, 4)), (2, 5, 8), [12]),
    "equal widths": (
        lambda: nn.Sequential(Product(8, 8), nn.ReLU(), Product(8, 8), nn.Tanh(), Product(8, 4)),
        (2, 5, 8),
        [8, 8],
    ),
    "heads": (lambda: Heads(early=True), (2, 6, 32), [8]),
    "heads behind the tokens": (lambda: Heads(early=False), (2, 6, 32), [8]),
    "shortcut": (lambda: _image(6), (2, 3, 8, 8), [6, 12, 6, 24, 12]),
    "state": (State, (4, 3, 5), [8, 8]),
}


@pytest.mark.parametrize("name", CASES)
def test_numbers_are_found_and_rewritten(name: str) -> None:
    make, shape, sizes = CASES[name]
    model, x = make().double(), torch.randn(shape, dtype=torch.float64)
    randomise(model)
    surgery = ChannelSurgery(model, x)
    assert [layer.num_channels for layer in surgery.layers] == sizes
    for seed in range(3):
        keep = random_mask(surgery, seed, least=2)
        assert_exact(surgery, x, keep)
        assert_exact(surgery, torch.randn_like(x), keep, training=True)
        assert_macs_exact(surgery, x, keep)
    plan = surgery.apply(keep)
    train_a_step(model, x, torch.optim.SGD(model.parameters(), lr=0.01))
    again = make().double()
    plan.apply(again)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.eval()(x), model.eval()(x))


def test_what_is_found_in_one_block_is_known_of_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried: list[str] = []
    passes = Numbers._passes

    def counted(self: Numbers, suspect: SizeAttribute, record: OpRecord) -> bool:
        tried.append(suspect.module)
        return passes(self, suspect, record)

    monkeypatch.setattr(Numbers, "_passes", counted)
    model = nn.Sequential(*(Heads(early=True) for _ in range(4))).double()
    x = torch.randn(2, 6, 32, dtype=torch.float64)
    surgery = ChannelSurgery(model, x)
    assert [layer.num_channels for layer in surgery.layers].count(8) == 4
    assert len(set(tried)) == 1
    assert_exact(surgery, x, random_mask(surgery, least=2))


def test_a_number_that_means_something_else_is_left_alone() -> None:
    class Sized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 3)
            self.steps = 8  # as many as channels, by chance

        def forward(self, x: Tensor) -> Tensor:
            y = torch.relu(self.first(x)).view(len(x), -1, 8)
            for _ in range(self.steps):
                y = torch.tanh(y)
            return self.last(y)

    model, x = Sized().double(), torch.randn(2, 4, 5, dtype=torch.float64)
    surgery = ChannelSurgery(model, x)
    assert not surgery.layers
    assert model.steps == 8


def test_a_number_of_which_another_use_is_a_size_of_the_input() -> None:
    class Twofold(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last, self.size = nn.Linear(6, 6), nn.Linear(6, 2), 6

        def forward(self, x: Tensor) -> Tensor:
            y = F.relu(self.first(x.view(-1, self.size)))
            return self.last(y.view(-1, self.size))

    model, x = Twofold().double(), torch.randn(2, 6, dtype=torch.float64)
    surgery = ChannelSurgery(model, x)
    assert not surgery.layers
