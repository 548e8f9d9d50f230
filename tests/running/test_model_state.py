"""A model that ran inside ``preserved`` is as it was before."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from lightning_slimga.running import model_state as module
from lightning_slimga.running.model_state import preserved
from tests.networks.checks import assert_same, snapshot


class Busy(nn.Module):
    """Changes everything that a forward pass may change."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))
        self.metric = MulticlassAccuracy(num_classes=4)
        self.register_buffer("table", torch.zeros(3))
        self.plain = torch.zeros(2)
        self.calls = 0
        self.history: list[float] = [1.0]
        self.seen: dict[str, int] = {}
        self.tags = {"a"}
        self.epoch: dict[str, Any] = {"losses": [], "last": deque([3], maxlen=2), "own": [{}]}

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.history.append(2.0)
        self.seen["x"] = len(x)
        self.tags.add("b")
        self.epoch["losses"].append(x)
        self.epoch["last"].extend([4, 5])
        self.epoch["own"][0]["x"] = x
        self.plain += 1
        self.table = self.table + 1
        self.extra = x
        self.added = nn.Linear(2, 2)
        y = self.spectral(self.norm(x)) + torch.rand_like(x)
        self.metric.update(y, torch.zeros(len(x), dtype=torch.long))
        self.eval()
        return y


@pytest.fixture(params=["at once", "together"])
def _answers(request: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a tensor has changed is known at once, or (of a GPU's) for several together."""

    def late(tensor: Tensor, content: Tensor) -> bool | Tensor:
        if tensor.dim():
            return (tensor != content).any()
        return not torch.equal(tensor, content)

    if request.param == "together":
        monkeypatch.setattr(module, "_differs", late)


@pytest.mark.usefixtures("_answers")
@pytest.mark.parametrize("fails", [False, True])
def test_everything_comes_back(fails: bool) -> None:
    model = Busy().train()
    before, table, plain, history = snapshot(model), model.table, model.plain, model.history
    metric = {k: v.clone() for k, v in model.metric.metric_state.items()}
    random = torch.get_rng_state()
    gradients = [p.grad for p in model.parameters()]

    def run() -> None:
        with preserved(model):
            model(torch.randn(5, 4)).sum().backward()
            assert model.calls == 1
            if fails:
                raise ArithmeticError("in the middle")

    if fails:
        with pytest.raises(ArithmeticError, match="in the middle"):
            run()
    else:
        run()

    assert_same(before, snapshot(model))
    assert model.training
    assert model.norm.training
    assert model.table is table
    assert model.plain is plain
    assert model.plain.tolist() == [0.0, 0.0]
    assert model.history is history
    assert (model.calls, history, model.seen, model.tags) == (0, [1.0], {}, {"a"})
    assert model.epoch == {"losses": [], "last": deque([3]), "own": [{}]}
    assert not hasattr(model, "extra")
    assert not hasattr(model, "added")
    assert torch.equal(torch.get_rng_state(), random)
    assert [p.grad for p in model.parameters()] == gradients
    for key, value in metric.items():
        assert torch.equal(model.metric.metric_state[key], value)


def test_a_buffer_resized_in_place_is_an_error() -> None:
    model = nn.Module()
    model.register_buffer("table", torch.zeros(3))
    model.register_buffer("other", torch.zeros(3))
    with (
        pytest.raises(RuntimeError, match="was resized in place"),
        preserved(model),
    ):
        model.table.resize_(5), model.other.fill_(1.0)
    assert model.other.sum() == 0


def test_gradients_keep_their_identity() -> None:
    model = nn.Linear(2, 2)
    model(torch.ones(1, 2)).sum().backward()
    kept = model.weight.grad
    with preserved(model):
        model.zero_grad()
    assert model.weight.grad is kept


class _Frozen(dict[str, int]):
    """A configuration that can be read, and nothing else."""

    def _refuse(self, *_: object, **__: object) -> None:
        raise TypeError("read-only")

    __setitem__ = __delitem__ = update = clear = pop = popitem = setdefault = copy = _refuse  # type: ignore[assignment]


class _Fixed(list[int]):
    def _refuse(self, *_: object) -> None:
        raise TypeError("read-only")

    __setitem__ = append = extend = clear = copy = _refuse  # type: ignore[assignment]


@pytest.mark.parametrize("changes", [False, True])
def test_containers_that_refuse_to_be_changed_are_left_alone_or_restored(changes: bool) -> None:
    model = nn.Linear(2, 2)
    model.config, model.sizes = _Frozen(width=8), _Fixed([1, 2])
    model.order = OrderedDict(a=1, b=2)
    with preserved(model):
        model.order.move_to_end("a")
        if changes:
            dict.__setitem__(model.config, "width", 9)
            list.append(model.sizes, 3)
    assert dict(model.config) == {"width": 8}
    assert list(model.sizes) == [1, 2]
    assert list(model.order) == ["a", "b"]
    assert type(model.config) is _Frozen


LAYOUTS = [torch.sparse_coo, torch.sparse_csr, torch.sparse_csc]


@pytest.mark.filterwarnings("ignore:Sparse C.. tensor support is in beta")
@pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("how", ["not", "in place", "another"])
def test_sparse_buffers_come_back(layout: torch.layout, how: str) -> None:
    net = nn.Module()
    table = torch.tensor([[0.0, 2.0], [3.0, 0.0]]).to_sparse(layout=layout)
    net.register_buffer("table", table)
    with preserved(net):
        if how == "in place":
            net.table.mul_(2)
            assert net.table.to_dense()[0, 1] == 4
        elif how == "another":
            net.table = net.table * 3
    assert net.table is table
    assert table.to_dense().tolist() == [[0.0, 2.0], [3.0, 0.0]]
