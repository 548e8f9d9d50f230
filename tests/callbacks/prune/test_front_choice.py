"""A network is picked from the front of metric and cost: at once, or later without a search."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, ClassVar

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from lightning_slimga import GeneticPruneCallback, SparsityCallback
from lightning_slimga.callbacks.prune.candidates import CandidateEvaluation
from lightning_slimga.search import Front
from tests.fits.small_fit import (
    WIDTHS,
    Net,
    assert_equal,
    assert_optimized,
    data,
    fitted,
    prune,
    trainer,
    widths,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
    pytest.mark.filterwarnings("ignore:.*Matplotlib"),
]


def front(**arguments: Any) -> GeneticPruneCallback:
    """The callback, searching a front of a few points below 90 % of MACs."""
    defaults = {"budget": {"macs": 0.9}, "pick": "knee", "population_size": 8, "generations": 2}
    return prune(**{**defaults, **arguments})


def macs(module: Any) -> int:
    """Multiply-adds for one image: by hand, for 4x4 and 2x2 places."""
    first, second = widths(module)
    return 16 * 9 * 2 * first + 4 * 9 * first * second + second * 4


def recalibrated(module: Any) -> Net:
    """A copy with the batch-norm statistics of the first training batch, by torch's own average."""
    copied = Net()
    copied.load_state_dict(module.state_dict())
    for layer in copied.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
            layer.momentum = None
    with torch.no_grad():
        copied.train()(next(iter(module.train_dataloader()))[0])
    return copied.eval()


class Dense(pl.Callback):
    """Evaluates plainly what the search evaluates cut and recalibrated."""

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == 0 and trainer.current_epoch == 1:
            x, y = next(iter(pl_module.val_dataloader()))
            self.logged = float(trainer.callback_metrics["val_loss"])
            with torch.no_grad():
                self.recalibrated = float(cross_entropy(recalibrated(pl_module)(x), y))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A fit that picks point 2, with its report and the checkpoint of the dense network."""
    folder = tmp_path_factory.mktemp("front")
    every = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
    callback, module, dense = front(pick=2, report=True), Net(), Dense()
    fit, _ = fitted(module, dense, every, callback, default_root_dir=folder)
    assert_optimized(fit, module)
    path = folder / "pruning_report" / "front.json"
    return {"folder": folder, "module": module, "callback": callback, "path": path, "dense": dense}


def test_the_point_that_is_picked_is_cut_out(run: dict[str, Any]) -> None:
    found: Front = run["callback"].front
    assert len(found) > 2
    assert macs(run["module"]) == found.points[2].cost
    assert sum(widths(run["module"])) == found.points[2].mask.sum()
    assert found.full[1] == macs(Net())
    assert found.full[0] == pytest.approx(run["dense"].recalibrated)
    assert run["dense"].recalibrated != pytest.approx(run["dense"].logged, rel=1e-2)
    report = json.loads((run["path"].parent / "report.json").read_text())
    assert report["uncut"] == pytest.approx([run["dense"].logged, run["dense"].recalibrated])
    page = (run["path"].parent / "report.md").read_text()
    assert f"of the uncut network: {run['dense'].logged:.4f}, and {found.full[0]:.4f} with" in page
    assert found.layers == (("body.0", WIDTHS[0]), ("body.3", WIDTHS[1]))
    assert max(point.cost for point in found.points) <= 0.9 * macs(Net())


def test_what_is_saved(run: dict[str, Any]) -> None:
    assert Front.load(run["path"]).state_dict() == run["callback"].front.state_dict()
    folder = run["path"].parent
    assert (folder / "front.png").exists()
    report = json.loads((folder / "report.json").read_text())
    points = [[point.cost, point.metric] for point in run["callback"].front.points]
    assert report["front"]["points"] == points
    assert report["front"]["chosen"] == 2
    assert "`front.json` holds them" in (folder / "report.md").read_text()
    saved = torch.load(run["folder"] / "epoch=1.ckpt", weights_only=True)
    state = saved["callbacks"]["GeneticPruneCallback"]["front"]
    assert Front.from_state_dict(state).state_dict() == run["callback"].front.state_dict()


class Watched(Net):
    """Writes down, outside of itself, how wide it is in each validation."""

    validated: ClassVar[list[Any]] = []

    def __init__(self) -> None:
        super().__init__()
        self.validated.clear()

    def on_validation_epoch_start(self) -> None:
        self.validated.append(widths(self))


def assert_no_search(module: Watched) -> None:
    """The uncut network, as often as it pleases; the one that is picked; what it is after it."""
    small = [size for size in module.validated if size != WIDTHS]
    assert small == [widths(module)] * 2


def later(run: dict[str, Any], module: Any = None, **arguments: Any) -> tuple[Any, Any]:
    """From the dense network's checkpoint on, without a search."""
    module = module or Net()
    callback = front(front=run["path"], **arguments)
    pl.seed_everything(7, verbose=False)
    fit = trainer(callback)
    fit.fit(module, ckpt_path=run["folder"] / "epoch=0.ckpt")
    assert_optimized(fit, module)
    return callback, module


def test_later_the_same_point_gives_the_same_network(run: dict[str, Any]) -> None:
    callback, module = later(run, Watched(), pick=2)
    assert_no_search(module)
    assert callback.plan.state_dict() == run["callback"].plan.state_dict()
    assert_equal(module, run["module"])


@pytest.mark.parametrize("pick", [0, -1, "knee", 0.5, {"macs": 0.4}, {"params": 500}])
def test_later_another_point_equals_picking_it_at_once(run: dict[str, Any], pick: Any) -> None:
    callback, module = later(run, Watched(), pick=pick)
    assert_no_search(module)
    points = callback.front.points
    full = macs(Net())
    if isinstance(pick, int):
        assert macs(module) == points[pick].cost
    elif pick != "knee":
        share = pick if isinstance(pick, float) else pick.get("macs", 1.0)
        within = [p for p in points if p.cost <= share * full]
        if "params" in str(pick):
            assert sum(p.numel() for p in module.parameters()) <= 500
        else:
            assert macs(module) == within[-1].cost == max(p.cost for p in within)

    if pick in ("knee", 0):
        direct = Net()
        fit = trainer(front(pick=pick))
        fit.fit(direct, ckpt_path=run["folder"] / "epoch=0.ckpt")
        assert_equal(direct, module)


def test_other_weights_are_said(run: dict[str, Any]) -> None:
    class Other(Net):
        def on_load_checkpoint(self, checkpoint: Any) -> None:
            checkpoint["state_dict"]["head.bias"] += 0.1

    with pytest.warns(UserWarning, match="searched with other weights of this network"):
        later(run, Other(), pick=1)


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        ({}, {"ignore": ["body.0"]}, r"`front` to be of this network, .*layers \{'body.3': 12\}"),
        ({}, {"mode": "max"}, "`front` to be of this network, by monitor, mode and budget .*'max'"),
        ({}, {"monitor": "val_acc"}, "`front` to be of this network, by .*'val_acc'"),
        ({}, {"budget": {"params": 0.9}}, "`front` to be of this network, by .*'params'"),
        ({}, {"budget": {"macs": 0.3}, "pick": -1}, "`pick` to name a point within the budget"),
        ({}, {"pick": 99}, r"`pick` to be an index of the \d+ points .* got 99. The front is kept"),
        ({}, {"pick": {"macs": 0.12}}, "`pick` to be within reach of the front, whose cheapest"),
    ],
)
def test_what_does_not_fit_is_refused(
    run: dict[str, Any], change: Any, arguments: Any, message: str
) -> None:
    module = Net()
    with pytest.raises(MisconfigurationException, match=message):
        later(run, module, **{"pick": 0, **arguments})
    assert widths(module) == WIDTHS


def test_a_file_that_is_no_front_is_refused_before_the_first_epoch(tmp_path: Path) -> None:
    module = Net()
    with pytest.raises(ValueError, match=r"`front` to be the path of a `front\.json`"):
        fitted(module, front(front=tmp_path / "front.json"))
    assert module.trainer.global_step == 0


def test_an_interrupted_search_for_a_front_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with another pick: that is chosen when the search is over."""
    masks: list[bytes] = []
    original = CandidateEvaluation.fitness

    def fitness(candidates: Any, mask: Any) -> float:
        masks.append(mask.tobytes())
        if len(masks) == fail_at:
            raise KeyError("from within an evaluation")
        return original(candidates, mask)

    monkeypatch.setattr(CandidateEvaluation, "fitness", fitness)

    def fit(folder: str, path: Any = None, **arguments: Any) -> Any:
        pl.seed_everything(7, verbose=False)
        module = Net()
        saver = ModelCheckpoint(tmp_path / folder, save_last=True)
        trainer(saver, front(**arguments)).fit(module, ckpt_path=path)
        return module

    fail_at = -1
    whole = fit("whole", pick=1)
    count = len(masks)
    masks.clear()
    fail_at = 11
    with pytest.raises(KeyError, match="within an evaluation"):
        fit("broken", pick="knee")
    resumed = fit("broken", tmp_path / "broken" / "last.ckpt", pick=1)
    assert_equal(resumed, whole)
    assert len(masks) == count + 1


def test_a_pick_that_the_search_did_not_find_leaves_the_front(tmp_path: Path) -> None:
    callback = front(pick=99, report=True)
    with pytest.raises(MisconfigurationException, match="`pick` to be an index of the"):
        fitted(Net(), callback, default_root_dir=tmp_path)
    path = tmp_path / "pruning_report" / "front.json"
    assert Front.load(path).state_dict() == callback.front.state_dict()


class ManyBatches(Net):
    """Validation data that a part does not stand for."""

    def val_dataloader(self) -> Any:
        return DataLoader(data(60, seed=1), batch_size=10)


def test_points_are_measured_on_everything_before_one_is_picked() -> None:
    callback, module = front(fitness_batches=1, pick=-1), ManyBatches()
    fit, _ = fitted(module, Scores(), callback)
    metrics = [point.metric for point in callback.front.points]
    assert metrics == sorted(metrics, reverse=True)
    assert macs(module) == callback.front.points[-1].cost
    scores = next(c for c in fit.callbacks if isinstance(c, Scores))
    assert scores.after == pytest.approx(metrics[-1], rel=1e-4)
    assert callback.front.full[0] == pytest.approx(scores.before, rel=1e-4)


class Scores(pl.Callback):
    """Computes the loss on all validation data, before the search and after surgery."""

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == 0 and trainer.current_epoch == 1 and not hasattr(self, "before"):
            self.before = self.loss(recalibrated(pl_module))

    def on_surgery(self, trainer: Any, pl_module: Any, plan: Any) -> None:
        self.after = self.loss(pl_module)

    @staticmethod
    def loss(module: Any) -> float:
        x, y = data(60, seed=1).tensors
        module.eval()
        with torch.no_grad():
            value = cross_entropy(module(x), y)
        module.train()
        return float(value)


class Sized(Net):
    """The more channels, the better, and the second layer counts double."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self(batch[0])
        first, second = widths(self)
        self.log("val_loss", float((WIDTHS[0] - first) + 2 * (WIDTHS[1] - second)))


@pytest.mark.parametrize("drop", [0.0, 6, 15.0])
@pytest.mark.parametrize("batches", [None, 1])
def test_max_drop_takes_the_smallest_that_holds(tmp_path: Path, drop: float, batches: Any) -> None:
    callback = front(
        max_drop=drop, pick=None, report=True, budget={"macs": 1.0}, fitness_batches=batches
    )
    module, saver = Sized(), ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    if drop == 0.0:
        with pytest.warns(UserWarning, match=r"No smaller network .*`max_drop=0.0` of 0.0000"):
            fitted(module, saver, callback, default_root_dir=tmp_path)
        assert widths(module) == WIDTHS
        return
    fitted(module, saver, callback, default_root_dir=tmp_path)
    path = tmp_path / "pruning_report" / "front.json"
    saved = json.loads(path.read_text())
    assert saved["full"]["metric"] == 0.0
    holds = [point["cost"] for point in saved["points"] if point["metric"] <= drop]
    assert macs(module) == min(holds) < macs(Net())
    report = json.loads((path.parent / "report.json").read_text())
    assert report["front"]["floor"] == drop
    assert min(point["cost"] for point in saved["points"]) < 0.2 * macs(Net())

    again = Sized()
    fit = trainer(front(max_drop=drop, pick=None, front=str(path), budget={"macs": 1.0}))
    fit.fit(again, ckpt_path=tmp_path / "epoch=0.ckpt")
    assert_equal(again, module)


class OnlyWhole(Net):
    """Every smaller network is much worse."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self(batch[0])
        self.log("val_loss", float(sum(WIDTHS) - sum(widths(self))))


def test_a_pick_that_gives_up_most_of_the_metric_is_warned_of() -> None:
    callback = front(pick=0)
    with pytest.warns(UserWarning, match=r"`pick=0` names, has val_loss .*more than half of the"):
        fitted(OnlyWhole(), callback)
    assert callback.plan is not None


def test_when_nothing_holds_the_network_stays() -> None:
    sparsity, callback, module = SparsityCallback(0.1), front(max_drop=0.5, pick=None), OnlyWhole()
    callback = front(max_drop=0.5, pick=None, budget={"macs": 1.0})
    with pytest.warns(
        UserWarning,
        match=r"No smaller network .*`max_drop=0.5` of 0.0000: nothing was pruned. The best one"
        r" reaches \d\.0000, with \d\d% of macs",
    ):
        fit, _ = fitted(module, sparsity, callback)
    assert widths(module) == WIDTHS
    assert callback.plan is None
    assert fit.current_epoch == 2
    assert sparsity.active
    assert callback.front is not None


def test_picking_the_whole_network_cuts_nothing() -> None:
    module, callback = OnlyWhole(), front(budget={"macs": 1.0}, pick=-1)
    with pytest.warns(UserWarning, match="`pick=-1` names, is the network as it is"):
        fitted(module, callback)
    assert widths(module) == WIDTHS
    assert math.isclose(callback.front.points[-1].metric, 0.0)


class NoMetric(Net):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self(batch[0])
        self.log("val_loss", 0.0 if sum(widths(self)) == sum(WIDTHS) else math.nan)


@pytest.mark.filterwarnings("ignore:.*of a candidate is NaN")
def test_a_front_without_points() -> None:
    module = NoMetric()
    with (
        pytest.warns(UserWarning, match="search ended: no signal: none of"),
        pytest.warns(UserWarning, match="No candidate of the search has a finite metric"),
    ):
        fitted(module, front())
    assert widths(module) == WIDTHS


def test_a_pick_that_the_network_meets_already() -> None:
    module = Net()
    with pytest.warns(UserWarning, match=r"meets `pick=.*5000.*` already: nothing was pruned"):
        fitted(module, front(pick={"params": 5000}))
    assert widths(module) == WIDTHS


def test_a_pick_that_no_network_meets() -> None:
    with pytest.raises(MisconfigurationException, match=r"`pick` to be within reach, .*smallest"):
        fitted(Net(), front(pick=0.01))


def test_a_pick_below_the_usual_range_is_searched() -> None:
    callback, module = front(pick=0.15), Net()
    fitted(module, callback)
    assert macs(module) <= 0.15 * macs(Net())


def test_knees_in_several_rounds() -> None:
    callback = front(
        prune_epoch=None, prune_epochs=[1, 2], budget=[{"macs": 0.9}, {"macs": 0.3}], pick=-1
    )
    _, module = fitted(Net(), callback, max_epochs=3)
    assert len(callback.plans) == 2
    assert macs(module) <= 0.3 * macs(Net())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"pick": "elbow"}, ValueError, "`pick` to be None, 'knee', an int .* but got 'elbow'"),
        ({"pick": 1.0}, ValueError, r"`pick` to be .* a float in \(0, 1\) .* but got 1.0"),
        ({"pick": True}, ValueError, "`pick` to be .* but got True"),
        ({"pick": {"flops": 1}}, ValueError, "`pick` to be limits of .* but got 'flops'"),
        ({"pick": {"latency_ms": 2}}, ValueError, "`pick` to be without 'latency_ms' where"),
        ({"pick": {}}, ValueError, "`pick` to be at least one limit"),
        ({"pick": {"macs": -1}}, ValueError, r"`pick\['macs'\]` to be a fraction"),
        ({"max_drop": -0.1, "pick": None}, ValueError, "`max_drop` to be a number of at least 0"),
        ({"max_drop": "1%", "pick": None}, ValueError, "`max_drop` to be a number of at least 0"),
        ({"max_drop": 0.1}, ValueError, "`pick` to be None with `max_drop`.* but got 'knee'"),
        ({"front": "a.json", "pick": None}, ValueError, "`front` to be None without `pick` or"),
        ({"patience": 3}, ValueError, "`patience` to be None with `pick` or `max_drop`, but got 3"),
        (
            {"prune_epoch": None, "prune_epochs": [1, 2], "budget": [{"macs": 0.5}] * 2,
             "pick": None, "max_drop": 0.1},
            ValueError, r"`prune_epochs` to be one round with `max_drop` or `front`",
        ),
    ],
)  # fmt: skip
def test_arguments_that_make_no_sense(arguments: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        front(**arguments)
