"""A plan is plain data that rebuilds the small model from the full-size class."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_slimga.surgery.channel_surgery import ChannelSurgery
from lightning_slimga.surgery.plan import PruningPlan
from lightning_slimga.surgery.tensor_cut import TensorCut
from tests.networks.checks import assert_same, random_mask, randomise, relative_error, snapshot
from tests.networks.zoo import make


def _through_state_dict(plan: PruningPlan) -> PruningPlan:
    return PruningPlan.from_state_dict(plan.state_dict())


def _through_json(plan: PruningPlan) -> PruningPlan:
    return PruningPlan.from_json(plan.to_json())


def _through_a_file(plan: PruningPlan) -> PruningPlan:
    file = io.BytesIO()
    torch.save(plan.state_dict(), file)
    file.seek(0)
    return PruningPlan.from_state_dict(torch.load(file, weights_only=True))


ROUND_TRIPS = [_through_state_dict, _through_json, _through_a_file]


@pytest.mark.parametrize("round_trip", ROUND_TRIPS)
@pytest.mark.parametrize("family", ["resnext", "shufflenet_v2", "unet"])
def test_a_plan_rebuilds_the_small_model(family: str, round_trip: Any) -> None:
    model, x = make(family)
    randomise(model)
    surgery = ChannelSurgery(model, x)
    full = {key: value.clone() for key, value in model.state_dict().items()}
    plan = surgery.apply(random_mask(surgery))

    fresh, _ = make(family)
    fresh.load_state_dict(full)
    again = round_trip(plan)
    assert again.apply(fresh) is again
    assert again.is_applied(fresh)
    for (name, a), b in zip(model.state_dict().items(), fresh.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    for a, b in zip(model.modules(), fresh.modules(), strict=True):
        numbers = [k for k, v in vars(a).items() if isinstance(v, int)]
        assert {k: vars(a)[k] for k in numbers} == {k: vars(b)[k] for k in numbers}
    with torch.no_grad():
        assert relative_error(model.eval()(x), fresh.eval()(x)) == 0.0


@pytest.mark.parametrize("round_trip", ROUND_TRIPS)
def test_a_round_trip_changes_nothing(round_trip: Any) -> None:
    plan = _plan()
    again = round_trip(plan)
    assert list(again.tensors) == list(plan.tensors)
    for name, cut in plan.tensors.items():
        other = again.tensors[name]
        assert (other.places, other.shape, list(other.kept)) == (
            cut.places,
            cut.shape,
            list(cut.kept),
        )
        assert all(torch.equal(other.kept[d], kept) for d, kept in cut.kept.items())
    assert again.attributes == plan.attributes
    assert again.summary == plan.summary
    assert str(again) == str(plan)


@pytest.mark.parametrize("family", ["resnext", "shufflenet_v2", "unet"])
def test_two_plans_in_one_do_what_they_do_one_after_the_other(family: str) -> None:
    model, x = make(family)
    randomise(model)
    full = {key: value.clone() for key, value in model.state_dict().items()}
    surgery, plans = ChannelSurgery(model, x), []
    dense = {"macs": surgery.macs(np.ones(surgery.num_channels, dtype=bool))}
    dense["params"] = sum(p.numel() for p in model.parameters())
    for seed in (1, 2):
        surgery = ChannelSurgery(model, x)
        plans.append(surgery.apply(random_mask(surgery, seed=seed)))

    fresh, _ = make(family)
    fresh.load_state_dict(full)
    both = _through_state_dict(plans[0].then(plans[1]))
    both.apply(fresh)
    for (name, a), b in zip(model.state_dict().items(), fresh.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    for a, b in zip(model.modules(), fresh.modules(), strict=True):
        numbers = [k for k, v in vars(a).items() if isinstance(v, int)]
        assert {k: vars(a)[k] for k in numbers} == {k: vars(b)[k] for k in numbers}
    with torch.no_grad():
        assert relative_error(model.eval()(x), fresh.eval()(x)) == 0.0
    for name in ("macs", "params"):
        assert both.summary[name] == [dense[name], plans[1].summary[name][1]]
    assert both.summary["params"][1] == sum(p.numel() for p in model.parameters())


def test_two_plans_of_different_tensors_and_layers() -> None:
    first = PruningPlan(
        {"a": TensorCut((("0", "weight"),), (4, 4), {0: torch.tensor([0, 2, 3])})},
        (("0", "out_features", 4, 3),),
        {"channels": [9, 8], "params": [50, 40], "layers": {"x": [4, 3], "y": [5, 5]}, "note": 1},
    )
    second = PruningPlan(
        {
            "renamed": TensorCut(
                (("0", "weight"),), (3, 4), {0: torch.tensor([1, 2]), 1: torch.tensor([3])}
            ),
            "b": TensorCut((("1", "weight"),), (4, 4), {1: torch.tensor([0])}),
        },
        (("0", "out_features", 3, 2), ("0", "in_features", 4, 1)),
        {"channels": [3, 2], "params": [40, 20], "layers": {"x": [3, 2]}},
    )
    both = first.then(second)
    assert list(both.tensors) == ["a", "b"]
    assert both.tensors["a"].shape == (4, 4)
    kept = {dim: indices.tolist() for dim, indices in both.tensors["a"].kept.items()}
    assert kept == {0: [2, 3], 1: [3]}
    assert set(both.attributes) == {("0", "out_features", 4, 2), ("0", "in_features", 4, 1)}
    assert both.summary == {
        "channels": [9, 7],
        "params": [50, 20],
        "layers": {"x": [4, 2], "y": [5, 5]},
        "note": 1,
    }


def test_a_plan_for_another_network_does_not_follow() -> None:
    plan = _plan()
    with pytest.raises(
        ValueError, match=r"`other` .* '0.weight' has shape \(4, .*got a plan for shape \(6, "
    ):
        plan.then(plan)


def _network(width: int = 6) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 4, 3)
    )


def _plan() -> PruningPlan:
    model = _network()
    surgery = ChannelSurgery(model, torch.randn(1, 3, 8, 8))
    keep = torch.tensor([True, False, True, True, False, True])
    return surgery.plan(keep)


def test_what_a_plan_says() -> None:
    plan = _plan()
    assert plan.tensors["0.weight"].small_shape == (4, 3, 3, 3)
    assert plan.tensors["3.weight"].kept[1].tolist() == [0, 2, 3, 5]
    assert set(plan.attributes) == {
        ("0", "out_channels", 6, 4), ("1", "num_features", 6, 4), ("3", "in_channels", 6, 4),
    }  # fmt: skip
    assert plan.summary["channels"] == [6, 4]
    assert plan.summary["layers"] == {"0": [6, 4]}
    assert plan.summary["params"] == [
        sum(p.numel() for p in _network(width).parameters()) for width in (6, 4)
    ]
    text = str(plan)
    assert "channels: 6 -> 4" in text
    assert "0.weight: (6, 3, 3, 3) -> (4, 3, 3, 3)" in text
    assert json.loads(plan.to_json())["format"] == 1


def test_planning_leaves_the_model_and_all_true_cuts_nothing() -> None:
    model = _network()
    before = snapshot(model)
    surgery = ChannelSurgery(model, torch.randn(1, 3, 8, 8))
    plan = surgery.plan(torch.ones(6, dtype=torch.bool))
    assert not plan.tensors
    assert not plan.attributes
    assert_same(before, snapshot(model))


def test_the_wrong_model_is_refused_and_untouched() -> None:
    plan = _plan()
    for model, found in (
        (_network(7), r"0\.weight.*\(6, 3, 3, 3\).*got \(7, 3, 3, 3\)"),
        (nn.Sequential(nn.ReLU()), r"0\.weight.*got no such tensor"),
        (nn.Linear(2, 2), r"0\.weight.*got no such tensor"),
    ):
        before = snapshot(model)
        assert not plan.is_applied(model)
        with pytest.raises(ValueError, match=found):
            plan.apply(model)
        assert_same(before, snapshot(model))


def test_a_plan_is_not_applied_twice() -> None:
    plan, model = _plan(), _network()
    plan.apply(model)
    with pytest.raises(ValueError, match="The plan has been applied to it already"):
        plan.apply(model)


def test_an_optimizer_may_come_along() -> None:
    plan, model = _plan(), _network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    momentum = optimizer.state[model[0].weight]["momentum_buffer"].clone()
    plan.apply(model, optimizer)
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [
        id(p) for p in model.parameters()
    ]
    small = optimizer.state[model[0].weight]["momentum_buffer"]
    assert torch.equal(small, momentum[[0, 2, 3, 5]])


@pytest.mark.parametrize("state", [{}, {"format": 99}, {"tensors": {}}, [1], None])
def test_what_is_no_plan_is_refused(state: Any) -> None:
    with pytest.raises(ValueError, match="state_dict of a PruningPlan of format 1, but got"):
        PruningPlan.from_state_dict(state)


def test_a_plan_fits_a_model_on_meta_tensors() -> None:
    plan = _plan()
    with torch.device("meta"):
        model = _network()
    plan.apply(model)
    assert [tuple(p.shape) for p in model.parameters()] == [
        tuple(p.shape) for p in _network(4).parameters()
    ]


def test_the_small_model_can_be_saved_and_exported(tmp_path: Any) -> None:
    model, x = _network(), torch.randn(2, 3, 8, 8)
    _plan().apply(model)
    wanted: Tensor = model.eval()(x)
    torch.save(model.state_dict(), tmp_path / "small.pt")
    other = _network()
    _plan().apply(other)
    other.load_state_dict(torch.load(tmp_path / "small.pt", weights_only=True))
    assert torch.equal(other.eval()(x), wanted)
    exported = torch.export.export(model, (x,)).module()
    torch.testing.assert_close(exported(x), wanted)
