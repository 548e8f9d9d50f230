"""What a surgery knows of a network; masked and shrunk are temporary; bad masks are refused."""

from __future__ import annotations

import contextlib
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from lightning_slimga.surgery.channel_surgery import ChannelSurgery
from tests.networks.checks import assert_exact, assert_same, random_mask, snapshot
from tests.networks.ready import ready
from tests.networks.zoo import two_layers


def test_the_layers_of_a_network() -> None:
    _, surgery, _, _ = ready()
    assert surgery.num_channels == 14
    first, second = surgery.layers
    assert (first.name, first.slice, first.gamma) == ("0", slice(0, 6), ("1.weight",))
    assert (second.name, second.slice, second.gamma) == ("3", slice(6, 14), ("4.weight",))
    assert set(first.tensors) == {
        ("0.weight", 0), ("0.bias", 0), ("1.weight", 0), ("1.bias", 0),
        ("1.running_mean", 0), ("1.running_var", 0), ("3.weight", 1),
    }  # fmt: skip
    names = {name for name, *_ in surgery.frozen}
    assert "8.bias" in names
    assert surgery.counts(torch.ones(14, dtype=torch.bool)).tolist() == [6, 8]


def test_scores_are_gamma_or_the_norm_of_the_slices() -> None:
    model, surgery, _, _ = ready()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([1.0, -2.0, 0.0, 3.0, 0.5, 0.25]))
    assert surgery.scores()[:6].tolist() == [1.0, 2.0, 0.0, 3.0, 0.5, 0.25]

    plain = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    scores = ChannelSurgery(plain, torch.randn(1, 4, dtype=torch.float64)).scores()
    norms = plain[0].weight.detach().norm(dim=1)
    assert scores.tolist() == pytest.approx((norms / norms.mean()).tolist())


def test_a_population_of_masks_gives_a_vector() -> None:
    _, surgery, _, _ = ready()
    masks = torch.stack([random_mask(surgery, seed) for seed in range(5)])
    for cost in (surgery.macs, surgery.params):
        values = cost(masks)
        assert values.shape == (5,)
        assert values.dtype == np.int64
        assert values.tolist() == [cost(mask) for mask in masks]


@pytest.mark.parametrize("use", ["masked", "shrunk"])
def test_masked_and_shrunk_restore_bit_for_bit_also_after_an_exception(use: str) -> None:
    model, surgery, keep, x = ready()
    model(x).sum().backward()
    before = snapshot(model)
    context = getattr(surgery, use)
    with context(keep):
        inside = snapshot(model)
    assert_same(before, snapshot(model))
    assert not torch.equal(inside["0.weight"][1], before["0.weight"][1])
    with pytest.raises(KeyError, match="mine"), context(keep):
        raise KeyError("mine")
    assert_same(before, snapshot(model))


class Counting(nn.Module):
    """Keeps an average by putting a new buffer in the place of the old, and counts in another."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("average", torch.zeros(()))
        self.register_buffer("calls", torch.zeros(1, dtype=torch.int64).expand(5))
        self.register_buffer("none", None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.average = 0.9 * self.average + 0.1 * x.detach().mean()
        if len(x) == 2:
            raise KeyError("mine")
        return x


@pytest.mark.parametrize("use", ["masked", "shrunk"])
@pytest.mark.parametrize("inference", [False, True])
def test_what_runs_inside_leaves_no_trace_in_buffers(use: str, inference: bool) -> None:
    """In training mode batch norm, also that of a layer that stays whole, writes into its own."""
    model = nn.Sequential(two_layers(), nn.BatchNorm1d(4), Counting()).double()
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    surgery = ChannelSurgery(model, x)
    before = snapshot(model.eval())
    buffers = [id(buffer) for buffer in model.buffers()]
    with getattr(surgery, use)(random_mask(surgery)), torch.inference_mode(inference):
        model.train()(x)
        changed = {name: buffer.clone() for name, buffer in model.named_buffers()}
    assert changed["1.running_mean"].any()
    assert changed["0.1.num_batches_tracked"] == 1
    assert changed["2.average"] != 0
    model.eval()
    assert_same(before, snapshot(model))
    assert [id(buffer) for buffer in model.buffers()] == buffers
    with pytest.raises(KeyError, match="mine"), getattr(surgery, use)(random_mask(surgery)):
        model.train()(x[:2])
    assert_same(before, snapshot(model.eval()))
    model.train()(x)  # and it trains on
    assert model[0][1].num_batches_tracked == 1


def test_shrunk_is_really_small_and_masked_really_zero() -> None:
    model, surgery, keep, _ = ready()
    kept = int(keep[:6].sum())
    with surgery.shrunk(keep):
        assert model[0].weight.shape == (kept, 3, 3, 3)
        assert model[0].out_channels == model[1].num_features == model[3].in_channels == kept
    with surgery.masked(keep):
        assert model[0].out_channels == 6
        assert (model[0].weight[~keep[:6]] == 0).all()
        assert (model[3].weight[:, ~keep[:6]] == 0).all()
        assert (model[1].bias[~keep[:6]] == 0).all()


def test_gradients_are_not_cut_for_a_while() -> None:
    """At the start of a training step they are there; a candidate has no use for them."""
    model, surgery, keep, x = ready()
    model(x).sum().backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    with surgery.shrunk(keep):
        assert model[0].weight.grad is None
        model(x).sum().backward()
        assert model[0].weight.grad.shape == model[0].weight.shape
    assert all(p.grad is g for p, g in zip(model.parameters(), gradients, strict=True))


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64]
)
def test_masked_is_zero_whatever_was_there(dtype: torch.dtype) -> None:
    model, surgery, keep, _ = ready()
    weight = torch.randn(model[3].weight.shape).to(dtype).to(memory_format=torch.channels_last)
    weight[:, :, 0, 0], weight[:, :, 1, 1] = float("nan"), -float("inf")
    model[3].weight = nn.Parameter(weight.clone())
    with surgery.masked(keep):
        found = model[3].weight.detach()
        assert (found[:, ~keep[:6]] == 0).all()
        live = torch.outer(keep[6:], keep[:6])
        torch.testing.assert_close(found[live], weight[live], rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(model[3].weight.detach(), weight, rtol=0, atol=0, equal_nan=True)


def test_masked_acts_on_the_tensors_that_the_model_holds_now() -> None:
    model, surgery, keep, x = ready()
    model.load_state_dict(two_layers().state_dict(), assign=True)
    assert_exact(surgery, x, keep)
    with surgery.masked(keep):
        assert (model[0].weight[~keep[:6]] == 0).all()


@pytest.mark.parametrize("use", ["masked", "shrunk", "apply"])
@pytest.mark.parametrize("second", ["same", "nothing", "elsewhere"])
def test_a_model_that_has_been_cut_needs_a_new_analysis(use: str, second: str) -> None:
    model, surgery, keep, x = ready()
    if second != "same":
        keep[surgery.layers[1].slice] = True
    surgery.apply(keep)
    again = surgery.apply if use == "apply" else contextlib.ExitStack().enter_context
    mask = keep if second == "same" else torch.ones_like(keep)
    mask[-1] = second != "elsewhere"  # of the layer that is still whole
    argument = mask if use == "apply" else getattr(surgery, use)(mask)
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"0\.weight.*has been applied to it already.*anew"):
        again(argument)
    assert_same(before, snapshot(model))
    new = ChannelSurgery(model, x)
    assert new.num_channels == int(keep.sum())


def test_a_mask_that_empties_a_layer_is_refused_by_name() -> None:
    _, surgery, keep, _ = ready()
    keep[surgery.layers[1].slice] = False
    for use in (surgery.apply, surgery.plan, lambda m: surgery.shrunk(m).__enter__()):
        with pytest.raises(ValueError, match=r"but it empties '3' \(8 channels\)"):
            use(keep)


def test_masks_of_another_shape_or_type_are_refused() -> None:
    _, surgery, keep, _ = ready()
    with pytest.raises(ValueError, match=r"mask of shape \(14,\).*got shape \(13,\)"):
        surgery.apply(keep[1:])
    with pytest.raises(ValueError, match=r"mask of shape \(14,\).*got shape \(1, 14\)"):
        surgery.apply(keep[None])
    with pytest.raises(TypeError, match=r"boolean mask \(True = keep\), but got dtype float32"):
        surgery.apply(keep.float())
    with pytest.raises(TypeError, match=r"boolean mask .* got dtype int64"):
        surgery.masked([1] * 14).__enter__()
    with pytest.raises(ValueError, match=r"shape \(14,\) or \(population, 14\).*\(3,\)"):
        surgery.macs(keep[:3])
    assert surgery.macs(keep.tolist()) == surgery.macs(keep.numpy())


def test_without_an_example_there_is_no_surgery() -> None:
    with pytest.raises(TypeError, match=r"`example_inputs` to be a Tensor.*got None"):
        ChannelSurgery(two_layers(), None)


def test_a_forward_that_fails_is_told_as_it_is_and_leaves_the_model() -> None:
    model = two_layers()
    before = snapshot(model)
    with pytest.raises(RuntimeError, match="channels"):
        ChannelSurgery(model, torch.randn(2, 5, 8, 8, dtype=torch.float64))
    assert_same(before, snapshot(model))


def test_modules_may_be_named_as_they_like() -> None:
    """Names of layers that end like those of torch's attention."""
    names = ("my_out_proj", "out_proj", "in_proj_weight")
    layers = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)
    model = nn.Sequential(OrderedDict(zip(names, layers, strict=True)))
    surgery = ChannelSurgery(model, torch.rand(3, 4))
    assert [layer.name for layer in surgery.layers] == list(names[:2])
    keep = random_mask(surgery)
    surgery.apply(keep)
    assert [layer.out_features for layer in layers[:2]] == surgery.counts(keep).tolist()


class Winding(nn.Module):
    """An addition ties channels; flattening gives each of them four places; a weight is shared."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4)
        self.branch = nn.Conv2d(4, 4, 1)
        self.inner = nn.Linear(16, 5)
        self.head = nn.Linear(5, 3)
        self.again = nn.Linear(5, 3)
        self.again.weight = self.head.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.stem(x))
        x = self.inner((x + self.branch(x)).flatten(1)).relu()
        return self.head(x) + self.again(x)


def test_the_channel_of_each_index_is_the_one_that_takes_it_away() -> None:
    model = Winding()
    surgery = ChannelSurgery(model, torch.randn(2, 2, 2, 2))
    numbered = dict(model.named_parameters())
    for parameter in numbered.values():  # no two entries are equal
        parameter.data = torch.arange(parameter.numel(), dtype=torch.float32).view(parameter.shape)
    expected = {
        (name, dim): np.full(parameter.shape[dim], -1)
        for name, parameter in numbered.items()
        for dim in range(parameter.dim())
    }
    full = {name: parameter.detach().clone() for name, parameter in numbered.items()}
    for bit in range(surgery.num_channels):
        with surgery.shrunk(np.arange(surgery.num_channels) != bit):
            for name, parameter in model.named_parameters():
                left = torch.isin(full[name], parameter)
                for dim in range(parameter.dim()):
                    others = [d for d in range(parameter.dim()) if d != dim]
                    gone = ~(left.amax(others) if others else left)
                    expected[name, dim][gone.numpy()] = bit

    assert surgery.num_channels == 4 + 5
    for (name, dim), bits in expected.items():
        assert surgery.channels_of(name, dim).tolist() == bits.tolist(), (name, dim)


def test_channels_of_what_is_not_there() -> None:
    _, surgery, _, _ = ready()
    with pytest.raises(
        ValueError, match=r"`tensor` to be the name of a parameter .* got '9.weight'"
    ):
        surgery.channels_of("9.weight", 0)
    with pytest.raises(
        ValueError, match=r"`dim` to be a dimension of 0.bias, which has 1, but got 1"
    ):
        surgery.channels_of("0.bias", 1)


def test_the_channels_handed_out_are_a_copy() -> None:
    _, surgery, _, _ = ready()
    surgery.channels_of("0.weight", 0)[:] = -1
    assert surgery.channels_of("0.weight", 0).tolist() == list(range(6))
