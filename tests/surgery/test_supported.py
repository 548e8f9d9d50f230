"""Compiled, tied, half-precision, channels-last: such networks are cut; others are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lightning_slimga.surgery.channel_surgery import ChannelSurgery
from lightning_slimga.surgery.supported import check_kinds, check_model
from tests.networks.checks import assert_exact, random_mask, relative_error, train_a_step
from tests.networks.zoo import two_layers

X = torch.randn(2, 3, 8, 8, dtype=torch.float64)


def _whole() -> nn.Module:
    return torch.compile(two_layers(), backend="eager")


def _child() -> nn.Module:
    return nn.Sequential(torch.compile(two_layers(), backend="eager"))


def _in_place() -> nn.Module:
    model = two_layers()
    model.compile(backend="eager")
    return model


@pytest.mark.parametrize("make", [_whole, _child, _in_place])
@pytest.mark.parametrize("warm", [True, False])
def test_compiled_networks_are_compiled_anew(make: Callable[[], nn.Module], warm: bool) -> None:
    model = make()
    if warm:
        model(X)
    surgery = ChannelSurgery(model, X)
    assert [layer.num_channels for layer in surgery.layers] == [6, 8]
    keep = random_mask(surgery)
    assert_exact(surgery, X, keep)
    with torch.no_grad(), surgery.masked(keep):
        wanted = model(X)
    optimizer = torch.optim.Adam(model.parameters())
    surgery.apply(keep, [optimizer])
    with torch.no_grad():
        assert relative_error(wanted, model(X)) < 1e-10
    train_a_step(model, X, optimizer)


def test_surgery_in_inference_mode_leaves_a_network_that_trains() -> None:
    model = two_layers()
    optimizer = torch.optim.Adam(model.parameters())
    train_a_step(model, X, optimizer)
    with torch.inference_mode():
        surgery = ChannelSurgery(model, X.clone())
        keep = random_mask(surgery)
        assert_exact(surgery, X, keep)
        surgery.apply(keep, [optimizer])
    state = [t for held in optimizer.state.values() for t in held.values()]
    assert not any(t.is_inference() for t in [*model.parameters(), *model.buffers(), *state])
    train_a_step(model, X, optimizer)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_removable_as_double(dtype: torch.dtype) -> None:
    model, x = two_layers().to(dtype).eval(), X.to(dtype)
    surgery = ChannelSurgery(model, x)
    assert [layer.num_channels for layer in surgery.layers] == [6, 8]
    keep = random_mask(surgery)
    with torch.no_grad(), surgery.masked(keep):
        wanted = model(x).double()
    surgery.apply(keep)
    with torch.no_grad():
        assert relative_error(wanted, model(x).double()) < 4 * torch.finfo(dtype).eps
    assert {p.dtype for p in model.parameters()} == {dtype}
    train_a_step(model, x, torch.optim.SGD(model.parameters(), lr=1e-3))


LAYOUTS = {
    2: (nn.Conv2d, torch.channels_last),
    3: (nn.Conv3d, torch.channels_last_3d),
}


@pytest.mark.parametrize("rank", LAYOUTS)
def test_channels_last_stays_channels_last(rank: int) -> None:
    kind, layout = LAYOUTS[rank]
    model = nn.Sequential(kind(3, 8, 3), nn.ReLU(), kind(8, 8, 3), nn.ReLU(), kind(8, 4, 3))
    model = model.double().to(memory_format=layout)
    x = torch.randn(2, 3, *[8] * rank).double().to(memory_format=layout)
    surgery = ChannelSurgery(model, x)
    assert [layer.num_channels for layer in surgery.layers] == [8, 8]
    keep = random_mask(surgery, least=2)
    assert_exact(surgery, x, keep)
    optimizer = torch.optim.Adam(model.parameters())
    train_a_step(model, x, optimizer)
    surgery.apply(keep, [optimizer])
    for weight in (p for p in model.parameters() if p.dim() > 1):
        assert weight.grad is not None
        for tensor in (weight, weight.grad, optimizer.state[weight]["exp_avg"]):
            assert tensor.is_contiguous(memory_format=layout)
            assert not tensor.is_contiguous()


class LanguageModel(nn.Module):
    """Its output layer is its table of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.up, self.down = nn.Embedding(11, 8), nn.Linear(8, 20), nn.Linear(20, 8)
        self.out = nn.Linear(8, 11, bias=False)
        self.out.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.down(torch.relu(self.up(self.tokens(tokens)))))


def test_a_tied_embedding_is_cut_at_both_ends() -> None:
    model, tokens = LanguageModel().double(), torch.randint(0, 11, (2, 5))
    surgery = ChannelSurgery(model, tokens)
    assert [(layer.name, layer.num_channels) for layer in surgery.layers] == [
        ("tokens", 8), ("up", 20),
    ]  # fmt: skip
    keep = random_mask(surgery)
    assert_exact(surgery, tokens, keep)
    optimizer = torch.optim.Adam(model.parameters())
    surgery.apply(keep, [optimizer])
    assert model.out.weight is model.tokens.weight
    assert model.out.in_features == model.tokens.embedding_dim == int(keep[:8].sum())
    train_a_step(model, tokens, optimizer)


def _meta() -> nn.Module:
    with torch.device("meta"):
        return two_layers()


def _scripted_child() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 3, 1).double(), torch.jit.trace(two_layers().eval(), X))


REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "function": (lambda: torch.relu, TypeError, r"got a builtin_function_or_method\. Pass the net"),
    "script": (lambda: torch.jit.script(two_layers()), TypeError, "got TorchScript, which cannot"),
    "child": (_scripted_child, TypeError, "got at '1' TorchScript, which cannot be cut"),
    "export": (
        lambda: torch.export.export(two_layers(), (X,)).module(),
        TypeError,
        r"got the result of torch\.export, .* Pass what was exported",
    ),
    "meta": (_meta, ValueError, r"hold values, but '0\.weight' is on the meta device"),
    "lazy": (
        lambda: nn.Sequential(nn.LazyConv2d(4, 3)),
        ValueError,
        r"have run once, but '0\.weight' has no size yet",
    ),
}


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
@pytest.mark.parametrize("kind", REFUSED)
def test_other_kinds_are_refused_in_a_sentence(kind: str) -> None:
    make, error, match = REFUSED[kind]
    with pytest.raises(error, match=match):
        ChannelSurgery(make(), X)


def test_a_distributed_wrapper_is_refused() -> None:
    wrapper = DistributedDataParallel.__new__(DistributedDataParallel)  # a real one needs processes
    nn.Module.__init__(wrapper)
    with pytest.raises(TypeError, match=r"got at '0' a DistributedDataParallel\. Pass what it wr"):
        check_model(nn.Sequential(wrapper))


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
@pytest.mark.parametrize("part", [nn.Linear(3, 3), nn.Sequential(nn.ReLU())])
def test_unused_parts_are_refused_before_the_network_has_run(part: nn.Module) -> None:
    model = nn.Sequential(nn.LazyConv2d(4, 3))
    check_kinds(model)
    model.spare = torch.jit.script(part)
    with pytest.raises(TypeError, match=r"got at .spare. TorchScript, .* Pass what it was made"):
        check_kinds(model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("inside", [True, False])
def test_autocast_around_changes_nothing(dtype: torch.dtype, inside: bool) -> None:
    model, x = two_layers().float(), X.float()
    wanted = [(layer.name, layer.num_channels) for layer in ChannelSurgery(model, x).layers]
    with torch.autocast("cpu", dtype=dtype):
        surgery = ChannelSurgery(model, x)
        if inside:
            surgery.apply(random_mask(surgery))
    assert [(layer.name, layer.num_channels) for layer in surgery.layers] == wanted
    assert not torch.is_autocast_enabled("cpu")
    if not inside:
        surgery.apply(random_mask(surgery))
    train_a_step(model, x, torch.optim.SGD(model.parameters(), lr=1e-3))


class Graph(nn.Module):
    """Convolves over a fixed graph, whose matrix is kept in some layout."""

    def __init__(self, layout: torch.layout) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 12), nn.Linear(12, 10)
        self.out = nn.Linear(10, 2)
        edges = torch.tensor([[0.0, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 3, 1, 0]])
        self.register_buffer("edges", edges.to_sparse(layout=layout))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.addmm(x[:, :1] * 0, self.edges, self.first(x))
        return self.out(torch.relu(self.edges @ self.second(torch.relu(x))))


@pytest.mark.filterwarnings("ignore:Sparse C.. tensor support is in beta")
@pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled")
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr, torch.sparse_csc])
def test_sparse_buffers_are_left_alone(layout: torch.layout) -> None:
    torch.manual_seed(0)
    model, x = Graph(layout).double(), torch.randn(4, 5, dtype=torch.float64)
    surgery = ChannelSurgery(model, x)
    assert [layer.num_channels for layer in surgery.layers] == [12, 10]
    keep, edges = random_mask(surgery), model.edges
    assert_exact(surgery, x, keep)
    with torch.no_grad(), surgery.masked(keep):
        wanted = model(x)
    surgery.apply(keep)
    assert relative_error(wanted, model(x).detach()) < 1e-10
    assert model.edges is edges
    train_a_step(model, x, torch.optim.Adam(model.parameters()))
