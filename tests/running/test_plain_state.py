"""What can be reached from an object comes back, and what lives a life of its own is left alone."""

from __future__ import annotations

import random
import threading
from argparse import Namespace
from collections import Counter, defaultdict, deque
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from lightning_slimga.running import containers, plain_state
from lightning_slimga.running.model_state import preserved
from lightning_slimga.running.plain_state import PlainState


@dataclass
class Meter:
    total: float = 0.0
    seen: list[int] = field(default_factory=list)


class Slotted:
    __slots__ = ("count", "late")

    def __init__(self) -> None:
        self.count = 1


@dataclass(frozen=True)
class Frozen:
    inner: Meter = field(default_factory=Meter)


class Tagged(list[int]):
    tag = "a"


def _add(counts: Any) -> None:
    counts["a"] += 1


def _delete(owner: Any) -> None:
    del owner.count
    owner.late = 3


CHANGES: dict[str, tuple[Any, Any, Any]] = {
    "number of an object": (Meter, lambda m: setattr(m, "total", 2.0), lambda m: m.total),
    "list of an object": (Meter, lambda m: m.seen.append(1), lambda m: list(m.seen)),
    "object in a frozen one": (
        Frozen,
        lambda f: f.inner.seen.append(1),
        lambda f: list(f.inner.seen),
    ),
    "new attribute": (Meter, lambda m: setattr(m, "new", 1), lambda m: hasattr(m, "new")),
    "slots": (Slotted, _delete, lambda s: (getattr(s, "count", None), hasattr(s, "late"))),
    "subclass of a list": (
        lambda: Tagged([1]),
        lambda t: (t.append(2), setattr(t, "tag", "b")),
        lambda t: (list(t), t.tag),
    ),
    "namespace": (lambda: SimpleNamespace(n=1), lambda s: setattr(s, "n", 2), lambda s: s.n),
    "arguments": (lambda: Namespace(n=[1]), lambda s: s.n.append(2), lambda s: list(s.n)),
    "defaultdict": (lambda: defaultdict(int), _add, dict),
    "counter": (lambda: Counter("ab"), _add, dict),
    "deque": (lambda: deque([1, 2], maxlen=2), lambda d: d.append(3), list),
    "set": (lambda: {1, 2}, lambda s: s.discard(1), sorted),
    "list in a tuple": (lambda: ([1],), lambda t: t[0].clear(), lambda t: list(t[0])),
    "array": (lambda: np.eye(2), lambda a: np.add(a, 1, out=a), lambda a: a.tolist()),
    "tensor": (lambda: torch.ones(2), lambda t: t.add_(1), lambda t: t.tolist()),
    "torch.Generator": (
        lambda: torch.Generator().manual_seed(3),
        lambda g: torch.rand(5, generator=g),
        lambda g: g.get_state().tolist(),
    ),
    "Generator": (
        lambda: np.random.default_rng(3),
        lambda r: r.standard_normal(5),
        lambda r: str(r.bit_generator.state),
    ),
    "RandomState": (
        lambda: np.random.RandomState(3),
        lambda r: r.randn(3),
        lambda r: str(r.get_state()),
    ),
    "bit generator": (lambda: np.random.PCG64(3), lambda r: r.random_raw(), lambda r: str(r.state)),
    "Random": (lambda: random.Random(3), lambda r: r.gauss(0, 1), lambda r: r.getstate()),
    "sampler of a loader": (
        lambda: DataLoader(
            TensorDataset(torch.zeros(4)),
            sampler=RandomSampler(range(4), generator=torch.Generator().manual_seed(1)),
        ),
        list,
        lambda loader: loader.sampler.generator.get_state().tolist(),
    ),
    "module that is not registered": (
        lambda: [nn.BatchNorm1d(2)],
        lambda m: m[0](torch.randn(4, 2)),
        lambda m: [b.tolist() for b in m[0].buffers()],
    ),
    "optimizer": (
        lambda: torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1, momentum=0.9),
        lambda o: (o.param_groups[0].update(lr=1.0), o.state.update(x=1)),
        lambda o: (o.param_groups[0]["lr"], dict(o.state)),
    ),
}


@pytest.mark.parametrize("where", ["itself", "in a list", "in an object", "of a module"])
@pytest.mark.parametrize("kind", CHANGES)
def test_it_comes_back(kind: str, where: str) -> None:
    make, change, read = CHANGES[kind]
    value = make()
    before, model = read(value), nn.Linear(1, 1)
    holder: Any = {
        "itself": value,
        "in a list": [{"x": value}],
        "in an object": SimpleNamespace(held=value),
        "of a module": value,
    }[where]
    if where == "of a module":
        model.held = holder

    def run() -> None:
        with preserved(model, beside=[holder]):
            change(value)
            assert read(value) != before
            raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        run()
    assert read(value) == before


def test_what_lives_a_life_of_its_own_is_left_alone() -> None:
    lock, holder = threading.Lock(), SimpleNamespace()
    holder.lock, holder.system, holder.thread = lock, random.SystemRandom(), threading.Thread()
    holder.weight = nn.Parameter(torch.zeros(2))
    state = PlainState([holder])
    holder.thread.name = "renamed"
    with torch.no_grad():
        holder.weight += 1
    lock.acquire()
    state.restore()
    assert holder.thread.name == "renamed"
    assert lock.locked()
    assert not state.tensors


def test_many_items_are_data_of_which_only_the_end_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "MANY", 3)
    meter, short = Meter(), Meter()
    data = {"list": [meter, 1, 2, 3], "deque": deque(range(4)), "dict": dict.fromkeys("abcd")}
    state = PlainState([data, [short]])
    meter.total = short.total = 1.0
    data["list"].append(4), data["deque"].append(4), data["dict"].update(e=None)
    state.restore()
    assert [len(value) for value in data.values()] == [4, 4, 4]
    assert (meter.total, short.total) == (1.0, 0.0)


def test_large_tensors_and_too_many_objects_are_data(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = [torch.zeros(3), torch.zeros(9)]
    monkeypatch.setattr(plain_state, "_ELEMENTS", 5)
    assert [t for t, _ in PlainState([tensors]).tensors] == tensors[:1]
    monkeypatch.setattr(plain_state, "_ALL_ELEMENTS", 2)
    assert not PlainState([tensors]).tensors
    near, far = Meter(), Meter()
    monkeypatch.setattr(plain_state, "_OBJECTS", 4)
    state = PlainState([[near, [[[[far]]]]]])
    near.total = far.total = 1.0
    state.restore()
    assert (near.total, far.total) == (0.0, 1.0)


def test_circles_end() -> None:
    one: Any = Meter()
    one.seen.append(one)
    state = PlainState([one])
    one.seen.append(1)
    state.restore()
    assert one.seen == [one]
