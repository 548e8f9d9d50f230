"""The families of the model zoos: exact, cheap to cost, and trainable afterwards."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_slimga.surgery import ChannelSurgery, SurgeryError
from lightning_slimga.transaction import Transaction
from tests.networks.checks import (
    assert_exact,
    assert_macs_exact,
    assert_same,
    random_mask,
    randomise,
    snapshot,
    train_a_step,
)
from tests.networks.zoo import FAMILIES, make

@pytest.mark.parametrize("family", FAMILIES)
def test_masked_equals_shrunk_and_training_goes_on(family: str) -> None:
    model, x = make(family)
    randomise(model)
    before = snapshot(model)
    surgery = ChannelSurgery(model, x)
    assert_same(before, snapshot(model))

    for seed, share in enumerate((0.5, 0.2)):
        keep = random_mask(surgery, seed, share)
        assert_exact(surgery, x, keep)
        assert_macs_exact(surgery, x, keep)
    model.train()
    assert_same(before, snapshot(model))

    total = sum(p.numel() for p in model.parameters())
    least = surgery.params(random_mask(surgery, share=0.0))
    assert least / total < 0.1, "hardly anything of this network is removable"

    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    train_a_step(model, x, optimizer)
    surgery.apply(keep, optimizers=[optimizer])
    assert sum(p.numel() for p in model.parameters()) == surgery.params(keep)
    train_a_step(model, x, optimizer)


@pytest.mark.parametrize("family", ["resnet", "mobilenet_v3", "densenet", "unet"])
def test_masked_equals_shrunk_in_single_precision(family: str) -> None:
    model, x = make(family, torch.float32)
    randomise(model)
    surgery = ChannelSurgery(model, x)
    assert_exact(surgery, x, random_mask(surgery))


def test_auxiliary_heads_are_compared_in_training_mode() -> None:
    model, x = make("googlenet")
    randomise(model)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # its noise has another shape in the small network
    surgery = ChannelSurgery(model, x)
    keep = random_mask(surgery)
    model.train()
    assert len(model(x)) == 3
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    assert_exact(surgery, x, keep, training=None)


def _two_layers() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.SiLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    ).double()


def _ready() -> tuple[nn.Sequential, ChannelSurgery, Tensor, Tensor]:
    model, x = _two_layers(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    surgery = ChannelSurgery(model, x)
    return model, surgery, random_mask(surgery), x


def test_the_layers_of_a_network() -> None:
    _, surgery, _, _ = _ready()
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
    model, surgery, _, _ = _ready()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([1.0, -2.0, 0.0, 3.0, 0.5, 0.25]))
    assert surgery.scores()[:6].tolist() == [1.0, 2.0, 0.0, 3.0, 0.5, 0.25]

    plain = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    scores = ChannelSurgery(plain, torch.randn(1, 4, dtype=torch.float64)).scores()
    norms = plain[0].weight.detach().norm(dim=1)
    assert scores.tolist() == pytest.approx((norms / norms.mean()).tolist())


def test_a_population_of_masks_gives_a_vector() -> None:
    _, surgery, _, _ = _ready()
    masks = torch.stack([random_mask(surgery, seed) for seed in range(5)])
    for cost in (surgery.macs, surgery.params):
        values = cost(masks)
        assert values.shape == (5,)
        assert values.dtype == np.int64
        assert values.tolist() == [cost(mask) for mask in masks]


@pytest.mark.parametrize("use", ["masked", "shrunk"])
def test_masked_and_shrunk_restore_bit_for_bit_also_after_an_exception(use: str) -> None:
    model, surgery, keep, x = _ready()
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


def test_shrunk_is_really_small_and_masked_really_zero() -> None:
    model, surgery, keep, _ = _ready()
    kept = int(keep[:6].sum())
    with surgery.shrunk(keep):
        assert model[0].weight.shape == (kept, 3, 3, 3)
        assert model[0].out_channels == model[1].num_features == model[3].in_channels == kept
    with surgery.masked(keep):
        assert model[0].out_channels == 6
        assert (model[0].weight[~keep[:6]] == 0).all()
        assert (model[3].weight[:, ~keep[:6]] == 0).all()
        assert (model[1].bias[~keep[:6]] == 0).all()


def test_masked_acts_on_the_tensors_that_the_model_holds_now() -> None:
    model, surgery, keep, x = _ready()
    model.load_state_dict(_two_layers().state_dict(), assign=True)
    assert_exact(surgery, x, keep)
    with surgery.masked(keep):
        assert (model[0].weight[~keep[:6]] == 0).all()


@pytest.mark.parametrize("use", ["masked", "shrunk", "apply"])
def test_a_model_that_has_been_cut_needs_a_new_analysis(use: str) -> None:
    model, surgery, keep, x = _ready()
    surgery.apply(keep)
    with pytest.raises(ValueError, match=r"0\.weight.*has been applied to it already"):
        if use == "apply":
            surgery.apply(keep)
        else:
            getattr(surgery, use)(keep).__enter__()
    again = ChannelSurgery(model, x)
    assert again.num_channels == int(keep.sum())


def test_a_mask_that_empties_a_layer_is_refused_by_name() -> None:
    _, surgery, keep, _ = _ready()
    keep[surgery.layers[1].slice] = False
    for use in (surgery.apply, surgery.plan, lambda m: surgery.shrunk(m).__enter__()):
        with pytest.raises(ValueError, match=r"but it empties '3' \(8 channels\)"):
            use(keep)


def test_masks_of_another_shape_or_type_are_refused() -> None:
    _, surgery, keep, _ = _ready()
    with pytest.raises(ValueError, match=r"mask of shape \(14,\).*got shape \(13,\)"):
        surgery.apply(keep[1:])
    with pytest.raises(ValueError, match=r"mask of shape \(14,\).*got shape \(1, 14\)"):
        surgery.apply(keep[None])
    with pytest.raises(TypeError, match=r"boolean mask \(True = keep\), but got dtype float32"):
        surgery.apply(keep.float())
    with pytest.raises(TypeError, match="boolean mask .* got dtype int64"):
        surgery.masked([1] * 14).__enter__()
    with pytest.raises(ValueError, match=r"shape \(14,\) or \(population, 14\).*\(3,\)"):
        surgery.macs(keep[:3])
    assert surgery.macs(keep.tolist()) == surgery.macs(keep.numpy())


def test_without_an_example_there_is_no_surgery() -> None:
    with pytest.raises(TypeError, match="`example_inputs` to be a Tensor.*got None"):
        ChannelSurgery(_two_layers(), None)


def test_a_forward_that_fails_is_told_as_it_is_and_leaves_the_model() -> None:
    model = _two_layers()
    before = snapshot(model)
    with pytest.raises(RuntimeError, match="channels"):
        ChannelSurgery(model, torch.randn(2, 5, 8, 8, dtype=torch.float64))
    assert_same(before, snapshot(model))


class _Fragile(nn.Module):
    """Runs at any width until it is told not to."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.armed, self.factor = _two_layers(), False, 0.0

    def forward(self, x: Tensor) -> Tensor:
        small = self.body[0].out_channels < 6
        if small and self.armed:
            raise RuntimeError("only the full width, please")
        return self.body(x) + (self.factor if small else 0.0)


def test_a_forward_that_fails_after_surgery_rolls_everything_back() -> None:
    model, x = _Fragile().double(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    surgery = ChannelSurgery(model, x)
    keep = random_mask(surgery)
    optimizer = torch.optim.Adam(model.parameters())
    train_a_step(model, x, optimizer)
    before, state = snapshot(model), copy.deepcopy(optimizer.state_dict())

    model.armed = True
    with pytest.raises(SurgeryError, match="cannot run on the example inputs: only the full width"):
        surgery.apply(keep, optimizers=[optimizer])
    model.armed, model.factor = False, 0.5
    with pytest.raises(SurgeryError, match=r"output \[0\] differs by .*cut: body\.0, body\.3"):
        surgery.apply(keep, optimizers=[optimizer])
    model.factor = 0.0
    assert_same(before, snapshot(model))
    _assert_same_state(state, optimizer.state_dict())


def test_a_failure_at_any_step_rolls_everything_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model, surgery, keep, x = _ready()
    optimizer = torch.optim.AdamW(model.parameters(), amsgrad=True)
    train_a_step(model, x, optimizer)
    before, state = snapshot(model), copy.deepcopy(optimizer.state_dict())
    order = [id(p) for p in optimizer.state]

    budget = 0
    original = Transaction.on_roll_back

    def failing(self: Transaction, undo: Callable[[], None]) -> None:
        nonlocal budget
        original(self, undo)
        budget -= 1
        if budget < 0:
            raise KeyboardInterrupt

    steps = 0
    while True:
        budget = steps
        with monkeypatch.context() as patch:
            patch.setattr(Transaction, "on_roll_back", failing)
            try:
                surgery.apply(keep, optimizers=[optimizer])
                break
            except KeyboardInterrupt:
                pass
        assert_same(before, snapshot(model))
        _assert_same_state(state, optimizer.state_dict())
        assert [id(p) for p in optimizer.state] == order
        steps += 1
    assert steps > 20
    assert model[0].out_channels == int(keep[:6].sum())


def _assert_same_state(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert a["param_groups"] == b["param_groups"]
    assert a["state"].keys() == b["state"].keys()
    for key, old in a["state"].items():
        assert old.keys() == b["state"][key].keys()
        assert all(torch.equal(torch.as_tensor(v), torch.as_tensor(b["state"][key][k]))
                   for k, v in old.items())  # fmt: skip


def test_gradients_attributes_layout_and_flags_survive() -> None:
    model, x = _two_layers().to(memory_format=torch.channels_last), torch.randn(2, 3, 8, 8).double()
    surgery = ChannelSurgery(model, x)
    keep = random_mask(surgery)
    model(x).sum().backward()
    model[3].weight.decay = "none"
    model[1].weight.requires_grad_(False)
    gradient = model[3].weight.grad.clone()
    surgery.apply(keep)
    weight = model[3].weight
    assert weight.decay == "none"
    assert not model[1].weight.requires_grad
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()
    assert torch.equal(weight.grad, gradient[keep[6:]][:, keep[:6]])
    assert isinstance(weight, nn.Parameter)


class _Tied(nn.Module):
    """An autoencoder whose two linear maps are one matrix, one of them through its transpose."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 9), nn.Linear(5, 9)
        self.b.weight = self.a.weight
        self.out = nn.Linear(9, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.a(x)) + torch.sigmoid(self.b(x))
        back = nn.functional.linear(hidden, self.b.weight.t())
        return self.out(torch.relu(self.a(back)))


def test_tied_weights_stay_tied() -> None:
    model, x = _Tied().double(), torch.randn(3, 5, dtype=torch.float64)
    optimizer = torch.optim.Adam(model.parameters())
    surgery = ChannelSurgery(model, x)
    keep = random_mask(surgery)
    assert_exact(surgery, x, keep)
    surgery.apply(keep, optimizers=[optimizer])
    assert model.a.weight is model.b.weight
    assert model.a.weight.shape == (int(keep.sum()), 5)
    assert model.a.out_features == model.b.out_features == int(keep.sum())
    train_a_step(model, x, optimizer)
    assert model.a.weight is model.b.weight


def _normed(wrap: Callable[[nn.Module], nn.Module]) -> nn.Module:
    return nn.Sequential(
        wrap(nn.Conv2d(3, 6, 3)), nn.Sigmoid(), wrap(nn.Conv2d(6, 8, 3)), nn.Flatten(),
        wrap(nn.Linear(8 * 16, 12)), nn.Tanh(), nn.Linear(12, 3),
    ).double()  # fmt: skip


def _old_weight_norm(module: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(module)


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "weight_norm": nn.utils.parametrizations.weight_norm,
    "spectral_norm": nn.utils.parametrizations.spectral_norm,
    "orthogonal": nn.utils.parametrizations.orthogonal,
    "old_weight_norm": _old_weight_norm,
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_reparametrised_weights_are_exact_or_frozen(name: str) -> None:
    model, x = _normed(WRAPPERS[name]), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    before = snapshot(model)
    surgery = ChannelSurgery(model, x)
    assert_same(before, snapshot(model))
    if not surgery.num_channels:
        assert surgery.frozen
        return
    keep = random_mask(surgery)
    assert_exact(surgery, x, keep)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    surgery.apply(keep, optimizers=[optimizer])
    train_a_step(model, x, optimizer)
