"""However a LightningModule is written, all of it that can become small becomes small."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_slimga import SparsityCallback
from tests.fits.small_fit import (
    WIDTHS,
    Net,
    assert_equal,
    assert_optimized,
    assert_pruned,
    fitted,
    prune,
    trainer,
    widths,
)


def loss_of(logits: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits, labels)


class Wrapped(Net):
    """Calls `self.model`, and has no forward of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Net()
        del self.body, self.head

    forward = pl.LightningModule.forward

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return loss_of(self.model(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", loss_of(self.model(batch[0]), batch[1]))


def test_a_network_in_an_attribute() -> None:
    fit, module = fitted(Wrapped(), prune())
    assert_pruned(fit, module.model)


class Parts(Net):
    """Calls its children one by one, and no forward of the whole."""

    forward = pl.LightningModule.forward

    def logits(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return loss_of(self.logits(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", loss_of(self.logits(batch[0]), batch[1]))


def test_children_that_are_called_one_by_one() -> None:
    """What flows between them is not seen, so the channels in between must stay as they are."""
    fit, module = fitted(Parts(), prune(budget={"macs": 0.7}))
    assert widths(module)[0] < WIDTHS[0]
    assert widths(module)[1] == WIDTHS[1]
    assert_optimized(fit, module)


class Auxiliary(Net):
    """A second head that only the training step calls."""

    def __init__(self) -> None:
        super().__init__()
        self.auxiliary = nn.Sequential(nn.Conv2d(WIDTHS[0], 6, 1), nn.ReLU(), nn.Conv2d(6, 4, 1))

    def features(self, x: Tensor) -> Tensor:
        return self.body[:3](x)

    def forward(self, x: Tensor) -> Any:
        features = self.features(x)
        logits = self.head(self.body[3:](features).mean((2, 3)))
        if self.training:
            return logits, self.auxiliary(features).mean((2, 3))
        return logits

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        main, second = self(batch[0])
        return loss_of(main, batch[1]) + 0.3 * loss_of(second, batch[1])


def test_a_head_that_only_training_uses() -> None:
    fit, module = fitted(Auxiliary(), prune(budget={"macs": 0.4}))
    assert_pruned(fit, module)
    assert module.auxiliary[0].in_channels == widths(module)[0] < WIDTHS[0]


class Student(Net):
    """Learns from a frozen teacher that is part of the module."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = Net()
        self.teacher.requires_grad_(False)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        with torch.no_grad():
            wanted = self.teacher(batch[0]).softmax(1)
        return loss_of(self(batch[0]), wanted)

    def configure_optimizers(self) -> Any:
        own = [*self.body.parameters(), *self.head.parameters()]
        return torch.optim.SGD(own, lr=0.05, momentum=0.9)


def test_a_frozen_teacher_stays_whole_if_it_is_ignored() -> None:
    module = Student()
    before = {k: v.clone() for k, v in module.teacher.state_dict().items()}
    fit, _ = fitted(module, prune(ignore="teacher"))
    assert_pruned(fit, module)
    assert widths(module.teacher) == WIDTHS
    after = module.teacher.state_dict()
    trained = [k for k in after if k.split(".")[-1] in ("weight", "bias")]
    assert all(torch.equal(after[k], before[k]) for k in trained)


class Gan(Net):
    """Two networks, two optimizers, manual optimization."""

    def __init__(self) -> None:
        super().__init__()
        del self.body, self.head
        self.automatic_optimization = False
        self.generator = nn.Sequential(
            nn.Linear(5, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 72)
        )
        self.discriminator = nn.Sequential(
            nn.Flatten(), nn.Linear(72, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 1)
        )

    def forward(self, noise: Tensor) -> Tensor:
        return self.generator(noise).view(-1, 2, 6, 6)

    def verdict(self, images: Tensor, real: bool) -> Tensor:
        logits = self.discriminator(images)
        wanted = torch.full_like(logits, float(real))
        return nn.functional.binary_cross_entropy_with_logits(logits, wanted)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        first, second = self.optimizers()
        noise = torch.randn(len(batch[0]), 5)
        self.toggle_optimizer(first)
        loss = self.verdict(self(noise), True)
        self.manual_backward(loss)
        first.step()
        first.zero_grad()
        self.untoggle_optimizer(first)
        self.toggle_optimizer(second)
        loss = self.verdict(batch[0], True) + self.verdict(self(noise).detach(), False)
        self.manual_backward(loss)
        second.step()
        second.zero_grad()
        self.untoggle_optimizer(second)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        fake = self(torch.randn(len(batch[0]), 5))
        self.log("val_loss", (fake.mean(0) - batch[0].mean(0)).pow(2).mean())
        self.log("verdict", self.verdict(fake, True))

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.Adam(self.generator.parameters(), lr=1e-2),
            torch.optim.SGD(self.discriminator.parameters(), lr=0.05, momentum=0.9),
        ]


def test_two_networks_with_an_optimizer_each() -> None:
    fit, module = fitted(Gan(), SparsityCallback(0.1), prune(), max_epochs=3)
    assert_optimized(fit, module)
    generator, discriminator = module.generator, module.discriminator
    assert generator[0].out_features + discriminator[1].out_features < 32
    assert discriminator[1].in_features == 72
    held = [{id(p) for g in o.param_groups for p in g["params"]} for o in fit.optimizers]
    assert held[0] == {id(p) for p in generator.parameters()}
    assert held[1] == {id(p) for p in discriminator.parameters()}


class Manual(Net):
    """Manual optimization, with accumulation and clipping of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        self.manual_backward(loss_of(self(batch[0]), batch[1]) / 2)
        if batch_idx % 2:
            self.clip_gradients(optimizer, 0.5, "norm")
            optimizer.step()
            optimizer.zero_grad()


def test_manual_optimization() -> None:
    fit, module = fitted(Manual(), prune())
    assert_pruned(fit, module)
    assert fit.global_step == 2


class Late(Net):
    """Builds its layers in `configure_model`."""

    def __init__(self) -> None:
        super().__init__()
        self.body = self.head = None

    def configure_model(self) -> None:
        if self.body is None:
            self.body, self.head = Net().body, Net().head


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_layers_built_in_configure_model(tmp_path: Any) -> None:
    fit, module = fitted(Late(), prune())
    assert_pruned(fit, module)
    fit.save_checkpoint(tmp_path / "last.ckpt")
    resumed = Late()
    other = trainer(prune(), max_epochs=3)
    other.fit(resumed, ckpt_path=tmp_path / "last.ckpt")
    assert_pruned(other, resumed)
    assert widths(resumed) == widths(module)


class Lazy(Net):
    """The sizes of its head and of its first layer are found out in the first forward."""

    def __init__(self) -> None:
        super().__init__()
        self.body[0] = nn.LazyConv2d(WIDTHS[0], 3)
        self.head = nn.LazyLinear(4)

    def setup(self, stage: str) -> None:
        if nn.parameter.is_lazy(self.head.weight):
            self(torch.zeros(2, 2, 6, 6))


def test_lazy_layers() -> None:
    fit, module = fitted(Lazy(), prune())
    assert_pruned(fit, module)


class Compiled(Net):
    """A part of the network is compiled."""

    def __init__(self, backend: str) -> None:
        super().__init__()
        self.body = torch.compile(self.body, backend=backend)

    @property
    def plain(self) -> Any:
        shown = Net()
        shown.body, shown.head = self.body._orig_mod, self.head
        return shown


@pytest.fixture
def _fresh_compiler() -> Any:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore:Using `torch.compile.module.` when there are global hooks")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor")
@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_part(backend: str) -> None:
    fit, module = fitted(Compiled(backend), prune())
    assert sum(widths(module.plain)) < sum(WIDTHS)
    assert_optimized(fit, module)
    x = torch.randn(3, 2, 6, 6)
    module.eval()
    torch.testing.assert_close(module(x), module.plain.eval()(x))


@pytest.mark.filterwarnings("ignore:Using `torch.compile.module.` when there are global hooks")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor")
@pytest.mark.usefixtures("_fresh_compiler")
def test_a_compiled_lightning_module() -> None:
    module = Net()
    pl.seed_everything(7, verbose=False)
    fit = trainer(prune())
    fit.fit(torch.compile(module, backend="eager"))
    assert_pruned(fit, module)
    _, plain = fitted(Net(), prune())
    assert widths(module) == widths(plain)


class Compiling(Net):
    """A method is compiled."""

    def __init__(self) -> None:
        super().__init__()
        self.forward = torch.compile(self.forward, backend="eager")


@pytest.mark.filterwarnings("ignore:Using `torch.compile.module.` when there are global hooks")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor")
@pytest.mark.usefixtures("_fresh_compiler")
def test_a_compiled_method() -> None:
    fit, module = fitted(Compiling(), prune())
    assert_pruned(fit, module)


class AtTheEnd(Net):
    """Logs its metric when validation ends, from what the steps have collected."""

    def on_validation_epoch_start(self) -> None:
        self.collected: list[Tensor] = []

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.collected.append(loss_of(self(batch[0]), batch[1]))

    def on_validation_epoch_end(self) -> None:
        self.log("val_loss", torch.stack(self.collected).mean())
        self.collected.clear()


def test_a_metric_logged_at_the_end() -> None:
    fit, module = fitted(AtTheEnd(), prune())
    assert_pruned(fit, module)
    _, plain = fitted(Net(), prune())
    assert widths(module) == widths(plain)


class Tied(Net):
    """Two layers share one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.body.append(nn.Conv2d(WIDTHS[1], WIDTHS[1], 1, bias=False))
        self.body.append(nn.ReLU())
        self.body.append(nn.Conv2d(WIDTHS[1], WIDTHS[1], 1, bias=False))
        self.body[8].weight = self.body[6].weight


def test_tied_weights_stay_tied() -> None:
    fit, module = fitted(Tied(), prune())
    assert module.body[8].weight is module.body[6].weight
    assert_optimized(fit, module)
    with FlopCounterMode(display=False) as small:
        module.eval()(torch.zeros(1, 2, 6, 6))
    with FlopCounterMode(display=False) as full:
        Tied().eval()(torch.zeros(1, 2, 6, 6))
    assert small.get_total_flops() <= 0.5 * full.get_total_flops()


def test_frozen_parameters_are_cut_and_stay_frozen() -> None:
    class Frozen(Net):
        def __init__(self) -> None:
            super().__init__()
            self.body[0].requires_grad_(False)

    fit, module = fitted(Frozen(), prune())
    assert not any(p.requires_grad for p in module.body[0].parameters())
    held = {id(p) for g in fit.optimizers[0].param_groups for p in g["params"]}
    assert held == {id(p) for p in module.parameters()}
    assert sum(widths(module)) < sum(WIDTHS)


def test_two_fits_are_alike() -> None:
    """The oracle of the comparisons above: nothing but the style differs."""
    assert_equal(fitted(Net(), prune())[1], fitted(Net(), prune())[1])
