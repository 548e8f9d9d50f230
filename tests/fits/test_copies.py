"""Copies that training code keeps in step, and networks that nobody trains: one short fit each."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from lightning_slimga import load_pruned
from tests.fits.small_fit import WIDTHS, Net, fitted, prune, trainer, widths


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def small(full: dict[str, Tensor], plan: Any, prefix: str) -> dict[str, Tensor]:
    """The tensors of a full-size copy, cut by hand as those that a plan has under a prefix."""
    cut = {}
    for name, tensor in full.items():
        for dim, kept in getattr(plan.tensors.get(prefix + name), "kept", {}).items():
            tensor = tensor.index_select(dim, kept)
        cut[name] = tensor
    return cut


class Teaches(Net):
    """A copy of the body follows it, slowly, and takes part in the validation."""

    def __init__(self) -> None:
        super().__init__()
        self.make()

    def make(self) -> None:
        self.average = copy.deepcopy(self.body).requires_grad_(False)

    @property
    def copied(self) -> nn.Module:
        return self.average

    def follow(self) -> None:
        with torch.no_grad():
            pairs = zip(self.body.parameters(), self.copied.parameters(), strict=True)
            for original, average in pairs:
                average.lerp_(original, 0.3)

    def on_train_batch_end(self, *_: Any) -> None:
        self.follow()

    def on_train_epoch_end(self) -> None:
        if self.current_epoch == 0:
            self.last = state(self.copied)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        logits = self.head(self.copied(batch[0]).mean((2, 3)))
        self.log("val_loss", nn.functional.cross_entropy(logits, batch[1]))
        self(batch[0])

    def on_surgery(self, trainer: Any, pl_module: Any, plan: Any) -> None:
        assert pl_module is self
        assert trainer is self.trainer
        self.plan, self.after = plan, state(self.copied)

    def configure_optimizers(self) -> Any:
        own = [*self.body.parameters(), *self.head.parameters()]
        return torch.optim.SGD(own, lr=0.05, momentum=0.9)


class TrainsOnly(Teaches):
    """Nothing but training code ever touches the copy: no pass reaches it."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        Net.validation_step(self, batch, batch_idx)


class Averages(Teaches):
    def make(self) -> None:
        self.average = AveragedModel(self.body, avg_fn=lambda a, b, _: a.lerp(b, 0.3))

    @property
    def copied(self) -> nn.Module:
        return self.average.module

    def follow(self) -> None:
        self.average.update_parameters(self.body)


class Starts(Averages):
    """The average begins late: until then it is what the network was before it had learnt."""

    def make(self) -> None:
        super().make()
        with torch.no_grad():
            for p in self.average.module.parameters():
                p.copy_(torch.randn(p.shape))

    def follow(self) -> None:
        if self.current_epoch > 0:
            super().follow()


class Hides(Teaches):
    """In a list, where no optimizer and no checkpoint sees it."""

    def make(self) -> None:
        self.hidden = [copy.deepcopy(self.body)]

    @property
    def copied(self) -> nn.Module:
        return self.hidden[0]


class HidesInATuple(Teaches):
    def make(self) -> None:
        self.hidden = (copy.deepcopy(self.body).eval(),)

    copied = Hides.copied


class Helper:
    def __init__(self, model: nn.Module) -> None:
        self.model = copy.deepcopy(model)


class Helps(Teaches):
    """In an object of the user's."""

    def make(self) -> None:
        self.helper = Helper(self.body)

    @property
    def copied(self) -> nn.Module:
        return self.helper.model


INSIDE = {Teaches: "average.", TrainsOnly: "average.", Averages: "average.module."}


@pytest.mark.parametrize(
    "kind", [Teaches, TrainsOnly, Averages, Starts, Hides, HidesInATuple, Helps]
)
def test_a_copy_loses_what_its_original_loses(kind: Any, caplog: Any) -> None:
    module, callback = kind(), prune()
    with caplog.at_level("INFO"):
        fitted(module, callback, max_epochs=3)
    assert sum(widths(module)) < sum(WIDTHS)
    expected = small(module.last, module.plan, "body.")
    for name, tensor in expected.items():
        assert torch.equal(module.after[name], tensor), name
    assert [p.shape for p in module.copied.parameters()] == [
        p.shape for p in module.body.parameters()
    ]
    assert module.copied[3].in_channels == module.body[3].in_channels
    if kind in INSIDE:
        cuts = module.plan.tensors
        for name in ("0.weight", "1.running_var", "3.weight"):
            mine, theirs = cuts["body." + name].kept, cuts[INSIDE[kind] + name].kept
            assert {d: k.tolist() for d, k in mine.items()} == {
                d: k.tolist() for d, k in theirs.items()
            }
    said = [r.getMessage() for r in caplog.records if "lose the channels" in r.getMessage()]
    assert len(said) == 1
    assert "(as body)" in said[0]


class KeepsAverage(pl.Callback):
    """An average of a part of the network, in a callback."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.average = AveragedModel(pl_module.body)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.average.update_parameters(pl_module.body)


def test_an_average_in_a_callback_is_cut_along() -> None:
    keeps, module = KeepsAverage(), Net()
    fitted(module, prune(), keeps)
    assert keeps.average.module[0].out_channels == widths(module)[0]
    assert keeps.average.module[3].weight.shape == module.body[3].weight.shape


def test_fitness_sees_the_copy_shrunk() -> None:
    """A copy outside of the module is validated as small as the candidate is."""
    sizes = set()

    class Looks(Hides):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            sizes.add((len(self.body[0].weight), len(self.copied[0].weight)))
            super().validation_step(batch, batch_idx)

    fitted(Looks(), prune())
    assert len(sizes) > 1
    assert all(one == other for one, other in sizes)


def test_named_twins_and_none() -> None:
    class Unlike(Teaches):
        def make(self) -> None:
            super().make()
            for p in self.average.parameters():
                nn.init.normal_(p)

        def follow(self) -> None: ...

    free, tied, off = Unlike(), Unlike(), Teaches()
    fitted(free, prune())
    assert free.average[0].out_channels == WIDTHS[0]  # another network, which nobody trains
    fitted(tied, prune(twins=[("body", "average")]))
    assert tied.average[0].out_channels == tied.body[0].out_channels
    off.follow = lambda: None
    fitted(off, prune(twins=False))
    assert (off.average[0].out_channels, off.average[3].out_channels) == WIDTHS


@pytest.mark.parametrize("pair", [("body", "head"), ("body", "nobody"), ("body", "body.0")])
def test_pairs_that_are_no_twins_are_refused_before_the_first_epoch(pair: Any) -> None:
    with pytest.raises(ValueError, match=r"Expected argument `twins` to be pairs of .*, but got"):
        fitted(Net(), prune(twins=[pair]))


class Shadows(pl.Callback):
    """The average as a dict of tensors, not cut by anybody."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.shadow: Any = {n: p.detach().clone() for n, p in pl_module.named_parameters()}


class CutsShadows(Shadows):
    def on_surgery(self, trainer: Any, pl_module: Any, plan: Any) -> None:
        for name, cut in plan.tensors.items():
            if name in self.shadow:
                self.shadow[name] = cut.take(self.shadow[name])


class Lists(Shadows):
    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.shadow = Helper(nn.Identity())
        self.shadow.tensors = [p.detach().clone() for p in pl_module.body.parameters()]


@pytest.mark.parametrize(
    ("kind", "where", "what"),
    [(Shadows, "Shadows.shadow", "First"), (Lists, "Lists.shadow.tensors", "body")],
)
def test_what_cannot_follow_is_said_before_the_first_batch(
    kind: Any, where: str, what: str
) -> None:
    class First(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            raise ZeroDivisionError

    said = f"`{where}` holds copies of the parameters of `{what}`"
    with pytest.warns(UserWarning, match=said), pytest.raises(ZeroDivisionError):
        fitted(First(), kind(), prune())


def test_who_cuts_its_shadow_hears_no_warning() -> None:
    shadows, module = CutsShadows(), Net()
    fitted(module, shadows, prune())
    assert {n: t.shape for n, t in shadows.shadow.items()} == {
        n: p.shape for n, p in module.named_parameters()
    }


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize("kind", [Teaches, Hides])
def test_resumed_fits_and_files_of_them(tmp_path: Path, kind: Any) -> None:
    def run(path: Any = None) -> Any:
        module = kind()
        saver = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        pl.seed_everything(7, verbose=False)
        trainer(prune(prune_epoch=2), saver, max_epochs=4).fit(module, ckpt_path=path)
        return module

    whole = run()
    for epoch in (0, 1, 2):
        again = run(tmp_path / f"epoch={epoch}.ckpt")
        assert widths(again) == widths(whole)
        assert again.copied[0].out_channels == widths(again)[0]
    loaded = load_pruned(kind, tmp_path / "epoch=3.ckpt")
    for (name, one), other in zip(loaded.named_parameters(), whole.parameters(), strict=True):
        assert torch.equal(one, other), name


class Frozen(Net):
    """A part of the network that nobody trains."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.extra = nn.Sequential(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 5, 3))
        if way == "no gradient":
            self.extra.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.extra(x).mean((1, 2, 3))[:, None]

    def configure_optimizers(self) -> Any:
        left_out = {id(p) for p in self.extra.parameters()} if self.way == "no optimizer" else ()
        own = [p for p in self.parameters() if id(p) not in left_out]
        return torch.optim.SGD(own, lr=0.05)


@pytest.mark.parametrize("way", ["no gradient", "no optimizer"])
def test_what_nobody_trains_stays_whole_and_is_named(way: str, caplog: Any) -> None:
    module = Frozen(way)
    before = copy.deepcopy(module.extra)
    with caplog.at_level("INFO"):
        fitted(module, prune(budget={"params": 0.5}))
    assert sum(widths(module)) < sum(WIDTHS)
    for one, other in zip(before.parameters(), module.extra.parameters(), strict=True):
        assert torch.equal(one, other)
    trained = sum(p.numel() for p in [*module.body.parameters(), *module.head.parameters()])
    full = sum(p.numel() for p in Net().parameters())
    assert trained <= 0.5 * full  # half of what is trained
    (said,) = [r.getMessage() for r in caplog.records if "Nobody trains" in r.getMessage()]
    assert "Nobody trains extra:" in said


def test_what_nobody_trains_is_searched_if_wanted(caplog: Any) -> None:
    module = Frozen("no gradient")
    with caplog.at_level("INFO"):
        fitted(module, prune(budget={"params": 0.3}, prune_untrained=True))
    assert module.extra[0].out_channels + module.extra[2].out_channels < 11
    assert "Nobody trains" not in caplog.text


@pytest.mark.filterwarnings("ignore:.*this fit will run with no optimizer")
def test_everything_may_go_where_no_optimizer_is_known() -> None:
    class ByHand(Net):
        automatic_optimization = False

        def configure_optimizers(self) -> None: ...

        def training_step(self, batch: Any, batch_idx: int) -> None:
            loss = super().training_step(batch, batch_idx)
            for p, g in zip(
                self.parameters(), torch.autograd.grad(loss, self.parameters()), strict=True
            ):
                p.data.sub_(0.05 * g)

    module = ByHand()
    fitted(module, prune())
    assert sum(widths(module)) < sum(WIDTHS)


class Snapshots(pl.Callback):
    """Keeps the network as it was, to be compared with: nobody changes it."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.first = copy.deepcopy(pl_module.body)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if not hasattr(self, "dense"):
            self.dense = copy.deepcopy(pl_module.body)


class Distils(Net):
    """Learns from itself as it was before the fit."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = copy.deepcopy(self.body).requires_grad_(False)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        known = self.teacher(batch[0]).mean()
        return super().training_step(batch, batch_idx) + 0 * known


def test_references_that_nobody_changes_stay_whole() -> None:
    kept, module = Snapshots(), Distils()
    fitted(module, kept, prune())
    assert sum(widths(module)) < sum(WIDTHS)
    for reference in (kept.first, kept.dense, module.teacher):
        assert (reference[0].out_channels, reference[3].out_channels) == (8, 12)
        assert reference(torch.zeros(1, 2, 6, 6)).shape[1] == 12
