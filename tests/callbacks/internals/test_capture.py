from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from lightning_slimga.callbacks.internals import capture_calls, training_batches
from tests.callbacks.internals.tiny import TinyNet, at_batch_start, data, trainer


def names(training: bool, count: int = 2) -> Any:
    def run(trainer: Any, module: Any) -> list[str]:
        batches = training_batches(trainer, module, count, 0)
        return [call.module for call in capture_calls(trainer, module, batches, training=training)]

    return run


class Parts(TinyNet):
    """Its steps call children, a criterion and a metric, not the module."""

    def __init__(self) -> None:
        super().__init__()
        self.criterion = nn.CrossEntropyLoss()

    def logits(self, x: Any) -> Any:
        return self.head(self.net(x))

    def training_step(self, batch: Any) -> Any:
        loss = self.criterion(self.logits(batch[0]), batch[1])
        self.log_dict({"a": loss, "b": self.accuracy(self.logits(batch[0]), batch[1])})
        return loss

    def validation_step(self, batch: Any, *rest: Any) -> None:
        self.log("val_loss", self.criterion(self.logits(batch[0]), batch[1]))

    on_validation_epoch_end = pl.LightningModule.on_validation_epoch_end


def test_a_call_of_the_module_itself_is_one_call() -> None:
    def run(trainer: Any, module: Any) -> Any:
        batches = training_batches(trainer, module, 2, 0)
        calls = [capture_calls(trainer, module, batches, training=t) for t in (True, False)]
        module.eval()
        outputs = [call.run(module) for call in calls[1]]
        held_out = list(module.val_dataloader())[:2]
        expected = [module(x) for x, _ in held_out]
        module.train()
        return calls, (batches, held_out), outputs, expected

    both, given, outputs, expected = at_batch_start(run)
    for calls, batches in zip(both, given, strict=True):
        assert [call.module for call in calls] == ["", ""]
        assert all(torch.equal(c.args[0], x) for c, (x, _) in zip(calls, batches, strict=True))
        assert all(not c.args[0].requires_grad and c.kwargs == {} for c in calls)
    assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True))


@pytest.mark.parametrize(("training", "expected"), [(True, 2), (False, 1)])
def test_calls_of_children_are_recorded_but_not_losses_and_metrics(
    training: bool, expected: int
) -> None:
    assert at_batch_start(names(training, 1), Parts()) == ["net", "head"] * expected


class Larger(TinyNet):
    """Validates on images of another size, and fails on those it trains on."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(*self.net[:4], nn.AdaptiveAvgPool2d(4), nn.Flatten())

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        assert batch[0].shape[-1] == 8
        self(batch[0])

    def val_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(Padded(data(40)), batch_size=8)

    on_validation_epoch_end = pl.LightningModule.on_validation_epoch_end


class Padded(torch.utils.data.Dataset):
    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index: int) -> Any:
        x, y = self.inner[index]
        return nn.functional.pad(x, (1, 1, 1, 1)), y


def test_validation_is_recorded_on_validation_batches() -> None:
    def run(trainer: Any, module: Any) -> Any:
        batches = training_batches(trainer, module, 2, 0)
        return [capture_calls(trainer, module, batches, training=t) for t in (True, False)]

    train, validation = at_batch_start(run, Larger())  # a warning would fail this test
    assert [tuple(call.args[0].shape) for call in train] == [(16, 1, 6, 6)] * 2
    assert [tuple(call.args[0].shape) for call in validation] == [(8, 1, 8, 8)] * 2
    held_out = [x for x, _ in Larger().val_dataloader()]
    assert all(any(torch.equal(call.args[0], x) for x in held_out) for call in validation)


def test_training_batches_where_validation_batches_are_refused() -> None:
    class Picky(TinyNet):
        refused = 0

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            if len(batch[0]) == self.refused:
                raise KeyError("not mine")
            self(batch[0])

        def val_dataloader(self) -> Any:
            return torch.utils.data.DataLoader(data(40), batch_size=8)

        on_validation_epoch_end = pl.LightningModule.on_validation_epoch_end

    def run(trainer: Any, module: Any) -> Any:
        batches = training_batches(trainer, module, 1, 0)
        module.refused = 8
        try:
            return capture_calls(trainer, module, batches, training=False)
        finally:
            module.refused = 0

    with pytest.warns(UserWarning, match=r"`validation_step` cannot be run .* validation batch \("):
        (call,) = at_batch_start(run, Picky())
    assert len(call.args[0]) == 16


def test_keyword_arguments_and_modes() -> None:
    class Modes(TinyNet):
        def forward(self, *, image: Any, training: bool) -> Any:
            assert self.net[3].training == training
            return self.head(self.net(image))

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self(image=batch[0], training=True).square().mean()

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val", self(image=batch[0], training=False).mean())

        on_validation_epoch_end = pl.LightningModule.on_validation_epoch_end

    def run(trainer: Any, module: Any) -> Any:
        batches = training_batches(trainer, module, 1, 0)
        return [capture_calls(trainer, module, batches, training=t)[0] for t in (True, False)]

    train, validation = at_batch_start(run, Modes())
    assert (train.module, train.args, train.kwargs["training"]) == ("", (), True)
    assert validation.kwargs["training"] is False


class Manual(TinyNet):
    """Manual optimization; counts its training steps."""

    def __init__(self, accepts_training_batches: bool = True) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.accepts = accepts_training_batches
        self.counter = torch.zeros(())

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.counter += 1
        self.manual_backward(self(batch[0]).square().mean())
        self.optimizers().step()

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        if self.trainer.training or (len(batch[0]) == 16 and not self.accepts):
            raise KeyError("not mine")
        self.head(self.net(batch[0]))

    def val_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(super().val_dataloader().dataset, batch_size=8)

    on_validation_epoch_end = pl.LightningModule.on_validation_epoch_end


def test_manual_optimization_does_not_step() -> None:
    def run(trainer: Any, module: Any) -> Any:
        before = float(module.counter)
        calls = names(True)(trainer, module)
        return calls, float(module.counter) - before

    assert at_batch_start(run, Manual()) == (["net", "head"] * 2, 0)


def test_validation_batches_where_training_batches_are_refused() -> None:
    def run(trainer: Any, module: Any) -> Any:
        batches = training_batches(trainer, module, 2, 0)
        return capture_calls(trainer, module, batches, training=True)

    with pytest.warns(UserWarning, match=r"`validation_step` cannot be run .* \(KeyError: 'not mi"):
        calls = at_batch_start(run, Manual(False))
    assert [len(call.args[0]) for call in calls] == [8] * 4


def test_step_that_needs_gradients_is_replaced_by_validation() -> None:
    class Penalised(TinyNet):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            x = batch[0].requires_grad_()
            return torch.autograd.grad(self(x).sum(), x, create_graph=True)[0].square().mean()

    with pytest.warns(UserWarning, match="`training_step` cannot be run without gradients"):
        assert at_batch_start(names(True), Penalised()) == ["", ""]


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but")
def test_without_validation_the_error_is_the_users() -> None:
    class Picky(Manual):
        val_dataloader = pl.LightningModule.val_dataloader

    def run(trainer: Any, module: Any) -> None:
        with pytest.raises(KeyError, match="not mine"):
            names(True)(trainer, module)

    at_batch_start(run, Picky(False))


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_recorded_arguments_can_be_replayed_without_the_precision_plugin(precision: Any) -> None:
    def run(trainer: Any, module: Any) -> Any:
        batches = training_batches(trainer, module, 1, 0)
        calls = capture_calls(trainer, module, batches, training=False)
        return [call.run(module).dtype for call in calls]

    dtype = {"bf16-mixed": torch.float32, "bf16-true": torch.bfloat16, "64-true": torch.float64}
    assert at_batch_start(run, Parts(), precision=precision) == [dtype[precision]] * 2


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # dynamo on `self.log`
@pytest.mark.parametrize("what", ["module", "child", "step"])
def test_compiled_code_is_recorded_too(what: str) -> None:
    module = TinyNet()
    if what == "child":
        module.net = torch.compile(module.net, backend="eager")
        module.forward = lambda x: module.head(module.net(x))
    elif what == "step":
        module.training_step = torch.compile(module.training_step, backend="eager")
    fitted = torch.compile(module, backend="eager") if what == "module" else module
    results = []

    class Capture(pl.Callback):
        def on_train_batch_start(self, t: Any, m: Any, batch: Any, batch_idx: int) -> None:
            results.append(names(True, 1)(t, m))

    trainer(Capture(), max_epochs=1, limit_val_batches=0).fit(fitted)
    assert results == [[""]] * 4


def test_capturing_leaves_the_fit_alone() -> None:
    class Both(pl.Callback):
        def on_train_batch_start(self, t: Any, m: Any, batch: Any, batch_idx: int) -> None:
            batches = training_batches(t, m, 2, 0)
            before = dict(t.callback_metrics), vars(m).copy(), m.accuracy.tp.clone()
            hooks = [len(x._forward_pre_hooks) + len(x._forward_hooks) for x in m.modules()]
            for training in (True, False):
                capture_calls(t, m, batches, training=training)
            assert (dict(t.callback_metrics), vars(m)) == before[:2]
            assert torch.equal(m.accuracy.tp, before[2])
            assert hooks == [len(x._forward_pre_hooks) + len(x._forward_hooks) for x in m.modules()]

    def train(*callbacks: Any) -> Any:
        torch.manual_seed(4)
        module = TinyNet()
        trainer(*callbacks).fit(module)
        return module.state_dict().values()

    assert all(torch.equal(a, b) for a, b in zip(train(), train(Both()), strict=True))
