from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_slimga.callbacks.internals import FitnessEvaluator
from tests.callbacks.internals.tiny import At, TinyNet, at_batch_start, data, trainer

# Lightning's advice about what some of these modules do on purpose.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*sampler has shuffling enabled"),
    pytest.mark.filterwarnings("ignore:Your `IterableDataset` has `__len__`"),
    pytest.mark.filterwarnings("ignore:.*num_workers>0, persistent_workers"),
]


def by_hand(module: pl.LightningModule, loader: DataLoader) -> tuple[float, float]:
    """Loss and accuracy of the model over the loader, by a plain loop."""
    was = module.training
    module.eval()
    with torch.no_grad():
        outputs = [(module(x), y) for x, y in loader]
    module.train(was)
    logits, y = torch.cat([o for o, _ in outputs]), torch.cat([y for _, y in outputs])
    loss = torch.nn.functional.cross_entropy(logits, y)
    return float(loss), float((logits.argmax(1) == y).float().mean())


# --- the number ---------------------------------------------------------------------------------


@pytest.mark.parametrize("room", [2**30, 0])
@pytest.mark.parametrize("sanity", [0, 2])
def test_is_the_metric_of_the_validation_loader(room: int, sanity: int) -> None:
    def run(trainer: Any, module: Any) -> Any:
        loader = module.val_dataloader()
        evaluators = [
            FitnessEvaluator(trainer, module, name, max_cache_bytes=room)
            for name in ("val_loss", "val_loss_epoch", "val_acc", "val_best")
        ]
        values = [evaluator() for evaluator in evaluators]
        return values, by_hand(module, loader)

    values, (loss, accuracy) = at_batch_start(
        run, num_sanity_val_steps=sanity, check_val_every_n_epoch=5 if sanity == 0 else 1
    )
    assert values[:2] == pytest.approx([loss, loss])
    assert values[2] == pytest.approx(accuracy)
    assert values[3] >= values[2]


@pytest.mark.parametrize(("limit", "chosen"), [(2, [0, 2]), (0.5, [0, 2]), (99, [0, 1, 2, 3])])
@pytest.mark.parametrize("room", [2**30, 0])
def test_limited_batches_are_spread_over_the_data(limit: Any, chosen: list, room: int) -> None:
    class Sorted(TinyNet):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("mean", batch.float().mean())

        def on_validation_epoch_end(self) -> None:
            pass

        def val_dataloader(self) -> Any:
            return DataLoader(torch.arange(16), batch_size=4)

    value = at_batch_start(
        lambda t, m: FitnessEvaluator(t, m, "mean", limit_batches=limit, max_cache_bytes=room)(),
        Sorted(),
    )
    assert value == pytest.approx(sum(4 * i + 1.5 for i in chosen) / len(chosen))


@pytest.mark.parametrize(("name", "known"), [("val_loss", True), ("val_best", False)])
@pytest.mark.parametrize("room", [2**30, 0])
def test_can_be_stopped_early(name: str, known: bool, room: int) -> None:
    """After two of three batches, the first 32 samples."""

    def run(trainer: Any, module: Any) -> Any:
        evaluator = FitnessEvaluator(trainer, module, name, max_cache_bytes=room)
        seen = []

        def stop(done: int, so_far: Any) -> bool:
            seen.append((done, so_far()))
            return done == 2

        x, y = data(40, seed=1).tensors
        part = DataLoader(TensorDataset(x[:32], y[:32]), batch_size=32)
        return evaluator(stop_when=stop), by_hand(module, part), seen

    stopped, (loss, accuracy), seen = at_batch_start(run)
    assert [done for done, _ in seen] == [1, 2]
    if known:
        assert stopped == seen[1][1] == pytest.approx(loss)
    else:
        assert stopped >= accuracy - 1e-6
        assert math.isnan(seen[1][1])


@pytest.mark.parametrize("room", [2**30, 0])
def test_every_call_sees_the_same_sample(room: int) -> None:
    class Noisy(TinyNet):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.net[3].train()  # dropout on
            super().validation_step(batch, batch_idx)

        def val_dataloader(self) -> Any:
            return DataLoader(data(40, 1), batch_size=16, shuffle=True)

    def run(trainer: Any, module: Any) -> list[float]:
        evaluator = FitnessEvaluator(
            trainer, module, "val_loss", limit_batches=2, max_cache_bytes=room
        )
        return [evaluator() for _ in range(3)]

    assert len(set(at_batch_start(run, Noisy()))) == 1


def test_data_that_is_too_large_is_loaded_anew() -> None:
    class Counted(TensorDataset):
        read = 0

        def __getitem__(self, index: int) -> Any:
            Counted.read += 1
            return super().__getitem__(index)

    class Counting(TinyNet):
        def val_dataloader(self) -> Any:
            return DataLoader(Counted(*data(40, 1).tensors), batch_size=16)

    def run(trainer: Any, module: Any) -> Any:
        values, reads = [], []
        for room in (1000, 2**30):
            evaluator, before = (
                FitnessEvaluator(trainer, module, "val_loss", max_cache_bytes=room),
                Counted.read,
            )
            values += [evaluator(), evaluator()]
            reads.append(Counted.read - before)
        return values, reads

    values, reads = at_batch_start(run, Counting())
    assert len(set(values)) == 1
    assert reads == [80, 0]


@pytest.mark.parametrize("room", [2**30, 0])
def test_transfer_hooks_run_once_and_steps_may_change_their_batch(room: int) -> None:
    class Greedy(TinyNet):
        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return {"x": batch[0] + 1, "y": batch[1]} if self.trainer.validating else batch

        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            if self.trainer.validating:
                batch["x"] = batch["x"] * 10
            return batch

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            x = batch.pop("x").sub_(10)
            self.log("mean", x.mean(), batch_size=len(x))

        def on_validation_epoch_end(self) -> None:
            pass

    def run(trainer: Any, module: Any) -> list[float]:
        evaluator = FitnessEvaluator(trainer, module, "mean", max_cache_bytes=room)
        return [evaluator(), evaluator()]

    expected = 10 * float(data(40, seed=1).tensors[0].mean())
    values = at_batch_start(run, Greedy(), num_sanity_val_steps=0)
    assert values == pytest.approx([expected] * 2, rel=1e-4)


class Two(TinyNet):
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("loss", torch.nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def on_validation_epoch_end(self) -> None:
        pass

    def val_dataloader(self) -> Any:
        return [DataLoader(data(40, 1), batch_size=16), DataLoader(data(24, 2), batch_size=8)]


@pytest.mark.parametrize("room", [2**30, 0])
def test_several_validation_loaders(room: int) -> None:
    def run(trainer: Any, module: Any) -> Any:
        name = "loss/dataloader_idx_1"
        value = FitnessEvaluator(trainer, module, name, max_cache_bytes=room)()
        with pytest.raises(MisconfigurationException, match="'loss/dataloader_idx_0', 'loss/data"):
            FitnessEvaluator(trainer, module, "loss", max_cache_bytes=room)()
        return value, by_hand(module, module.val_dataloader()[1])[0]

    value, expected = at_batch_start(run, Two())
    assert value == pytest.approx(expected)


class Stream(IterableDataset):
    def __iter__(self) -> Any:
        return iter(data(40, seed=1))


@pytest.mark.parametrize("room", [2**30, 0])
def test_data_of_unknown_length(room: int) -> None:
    class Streaming(TinyNet):
        def val_dataloader(self) -> Any:
            return DataLoader(Stream(), batch_size=16)

    def run(trainer: Any, module: Any) -> Any:
        evaluators = [
            FitnessEvaluator(trainer, module, "val_loss", limit_batches=n, max_cache_bytes=room)
            for n in (None, 2)
        ]
        with pytest.raises(MisconfigurationException, match="`fitness_batches` to be an int"):
            FitnessEvaluator(trainer, module, "val_loss", limit_batches=0.5)
        return [e() for e in evaluators], by_hand(module, module.val_dataloader())[0]

    (whole, part), expected = at_batch_start(run, Streaming())
    assert whole == pytest.approx(expected)
    assert part != whole


def test_step_that_takes_the_iterator() -> None:
    class Iterating(TinyNet):
        def validation_step(self, dataloader_iter: Any) -> None:
            (x, y), _, _ = next(dataloader_iter)
            self.log("loss", torch.nn.functional.cross_entropy(self(x), y), batch_size=len(x))

        def on_validation_epoch_end(self) -> None:
            pass

    def run(trainer: Any, module: Any) -> Any:
        value = FitnessEvaluator(trainer, module, "loss")()
        return value, by_hand(module, module.val_dataloader())[0]

    with pytest.warns(UserWarning, match="dataloader_iter"):
        value, expected = at_batch_start(run, Iterating())
    assert value == pytest.approx(expected)


class Data(pl.LightningDataModule):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def train_dataloader(self) -> Any:
        return DataLoader(data(), batch_size=16)

    def val_dataloader(self) -> Any:
        self.calls += 1
        return DataLoader(data(40, seed=1), batch_size=16)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true", "64-true"])
def test_data_module_and_precision(precision: Any) -> None:
    def run(trainer: Any, module: Any) -> Any:
        calls = trainer.datamodule.calls
        value = FitnessEvaluator(trainer, module, "val_loss")()
        assert trainer.datamodule.calls == calls
        reference = TinyNet()
        reference.load_state_dict(module.state_dict())  # casts
        return value, by_hand(reference, DataLoader(data(40, seed=1), batch_size=16))[0]

    arguments = {"precision": precision, "reload_dataloaders_every_n_epochs": 1}
    value, expected = at_batch_start(run, TinyNet(), Data(), **arguments)
    assert value == pytest.approx(expected, rel=1e-5 if precision[:2] in "3264" else 0.02)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # dynamo on `self.log`
def test_a_compiled_module_is_not_compiled_for_every_candidate() -> None:
    graphs = torch._dynamo.utils.counters["stats"]

    def run(trainer: Any, module: Any) -> None:
        evaluator = FitnessEvaluator(trainer, module, "val_acc")
        before, full = graphs["unique_graphs"], (module.net, module.head)
        for width in (3, 2, 1):
            module.net = nn.Sequential(nn.Conv2d(1, width, 3), nn.Flatten())
            module.head = nn.Linear(16 * width, 3)
            x, y = data(40, seed=1).tensors
            accuracy = (module.head(module.net(x)).argmax(1) == y).float().mean()
            assert evaluator() == pytest.approx(float(accuracy))
        module.net, module.head = full
        assert graphs["unique_graphs"] == before > 0

    at_batch_start(run, torch.compile(TinyNet(), backend="eager"))


# --- no trace -----------------------------------------------------------------------------------

HOOKS = (
    "on_train_start",
    "on_train_epoch_start",
    "on_train_batch_start",
    "on_train_batch_end",
    "on_train_epoch_end",
    "on_validation_end",
    "on_train_end",
)


class Everywhere(pl.Callback):
    """Evaluates in each of the hooks, at each opportunity."""

    def __init__(self, hooks: tuple[str, ...], room: int) -> None:
        self.values: list[float] = []
        for hook in hooks:
            setattr(self, hook, lambda t, m, *_, **__: self.evaluate(t, m, room))

    def evaluate(self, trainer: Any, module: Any, room: int) -> None:
        if trainer.sanity_checking:
            return
        before = observed(trainer, module)
        evaluator = FitnessEvaluator(
            trainer, module, "val_loss", limit_batches=2, max_cache_bytes=room
        )
        self.values += [evaluator(), evaluator()]
        after = observed(trainer, module)
        assert after.pop("rng").equal(before.pop("rng"))
        assert after == before


def observed(trainer: Any, module: Any) -> dict[str, Any]:
    return {
        "callback": dict(trainer.callback_metrics),
        "logged": dict(trainer.logged_metrics),
        "bar": dict(trainer.progress_bar_metrics),
        "step": trainer.global_step,
        "loops": trainer.fit_loop.state_dict(),
        "rng": torch.get_rng_state(),
        "modes": [m.training for m in module.modules()],
        "stage": trainer.state.stage,
        "stop": trainer.should_stop,
        "own": sorted(vars(module)),
        "trainer": sorted(vars(trainer)),
        "loader": trainer.fit_loop.epoch_loop.val_loop._combined_loader,
    }


class SharedGenerator(TinyNet):
    """Training and validation loaders draw from one generator; workers are persistent."""

    def __init__(self, workers: int = 0) -> None:
        super().__init__()
        self.source = torch.Generator().manual_seed(5)
        self.workers = {"num_workers": workers, "persistent_workers": workers > 0}

    def train_dataloader(self) -> Any:
        source = {"generator": self.source, **self.workers}
        return DataLoader(data(), batch_size=16, shuffle=True, **source)

    def val_dataloader(self) -> Any:
        source = {"generator": self.source, **self.workers}
        return DataLoader(data(40, 1), batch_size=16, shuffle=True, **source)


def fit_with(folder: Path, *extra: pl.Callback, module: Any = None, **arguments: Any) -> Any:
    torch.manual_seed(3)
    module = module() if module is not None else TinyNet()
    callbacks = [
        ModelCheckpoint(folder / "ckpt", monitor="val_loss", save_top_k=-1, filename="{epoch}"),
        EarlyStopping("val_loss", patience=5),
        LearningRateMonitor(),
    ]
    fit = trainer(
        *callbacks,
        *extra,
        max_epochs=3,
        logger=CSVLogger(folder, name="csv", version=0),
        log_every_n_steps=1,
        enable_checkpointing=True,
        **arguments,
    )
    fit.fit(module)
    states = [{k: v for k, v in c.state_dict().items() if k != "dirpath"} for c in callbacks[:2]]
    text = repr(states).replace(str(folder), "")
    return module, (folder / "csv/version_0/metrics.csv").read_bytes(), text


@pytest.mark.parametrize("module", [TinyNet, SharedGenerator])
@pytest.mark.parametrize("sanity", [0, 2])
@pytest.mark.parametrize("room", [2**30, 0])
def test_the_fit_goes_on_as_if_nothing_had_happened(
    tmp_path: Path, module: Any, sanity: int, room: int
) -> None:
    plain, csv, states = fit_with(tmp_path / "a", module=module, num_sanity_val_steps=sanity)
    everywhere = Everywhere(HOOKS, room)
    searched, csv_2, states_2 = fit_with(
        tmp_path / "b", everywhere, module=module, num_sanity_val_steps=sanity
    )
    assert len(everywhere.values) > 50
    assert csv == csv_2
    assert states == states_2
    assert plain.best == searched.best
    assert sorted(p.name for p in (tmp_path / "a/ckpt").iterdir()) == sorted(
        p.name for p in (tmp_path / "b/ckpt").iterdir()
    )
    for (name, a), b in zip(
        plain.state_dict().items(), searched.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name


class Fragile(TinyNet):
    fail = False

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        if self.fail and batch_idx == 1:
            raise KeyError("broken")


def test_everything_is_restored_after_an_exception() -> None:
    def run(trainer: Any, module: Any) -> Any:
        evaluator = FitnessEvaluator(trainer, module, "val_acc")
        module.fail = False
        first, before = evaluator(), observed(trainer, module)
        module.fail = True
        with pytest.raises(KeyError, match="broken"):
            evaluator()
        module.fail = False
        after = observed(trainer, module)
        assert after.pop("rng").equal(before.pop("rng"))
        assert after == before
        return first, evaluator()

    first, second = at_batch_start(run, Fragile())
    assert first == second


def test_user_code_that_reaches_for_loggers_and_callbacks(tmp_path: Path) -> None:
    class Reaching(TinyNet):
        seen: Any = ()

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            super().validation_step(batch, batch_idx)
            self.logger.experiment.add_scalar("x", 1.0)
            self.logger.log_metrics({"y": 1.0})
            self.logger[0].log_graph(self)
            self.seen += ((self.trainer.log_dir, self.trainer.checkpoint_callback.monitor),)

    class Logger(CSVLogger):
        @property
        def experiment(self) -> Any:
            return self

        add_scalar = log_graph = save = lambda *_: None
        written = 0

        def log_metrics(self, *_: Any, **__: Any) -> None:
            self.written += 1

        def __getitem__(self, index: int) -> Any:
            return self

    def run(trainer: Any, module: Any) -> Any:
        written, seen = trainer.logger.written, module.seen
        FitnessEvaluator(trainer, module, "val_acc")()
        assert module.seen == seen  # a plain attribute: restored
        return trainer.logger.written - written

    module = Reaching()
    checkpoint = ModelCheckpoint(tmp_path, monitor="val_loss")
    at = At(run)
    logger = Logger(tmp_path, name="csv", version=0)
    trainer(checkpoint, at, logger=logger, enable_checkpointing=True).fit(module)
    assert at.result == 0
    assert set(module.seen) == {(str(tmp_path / "csv/version_0"), "val_loss")}


class LogsAccuracy(pl.Callback):
    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        pl_module.log("from_callback", 0.25)


def test_what_a_callback_logs_is_not_heard() -> None:
    def run(trainer: Any, module: Any) -> None:
        with pytest.raises(MisconfigurationException, match="got 'from_callback'"):
            FitnessEvaluator(trainer, module, "from_callback")()

    trainer(At(run), LogsAccuracy()).fit(TinyNet())


def test_a_checkpoint_written_in_mid_evaluation_resumes_exactly(tmp_path: Path) -> None:
    class Signalled(TinyNet):
        path: Any = None

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            super().validation_step(batch, batch_idx)
            if self.path and batch_idx == 1:
                self.trainer.save_checkpoint(self.path)

    class Keeper(pl.Callback):
        state_key = "Keeper"

        def state_dict(self) -> dict[str, Any]:
            return {"kept": 3}

    class Plain(Signalled):
        def train_dataloader(self) -> Any:
            return DataLoader(data(), batch_size=16)

    def run(trainer: Any, module: Any) -> None:
        evaluator = FitnessEvaluator(trainer, module, "val_acc")
        module.path = tmp_path / "mid.ckpt"
        evaluator()
        module.path = None

    torch.manual_seed(1)
    straight = Plain()
    straight.net[3].p = 0.0
    trainer(At(run), Keeper(), max_epochs=3).fit(straight)
    checkpoint = torch.load(tmp_path / "mid.ckpt", weights_only=True)
    assert checkpoint["callbacks"] == {"Keeper": {"kept": 3}}
    resumed = Plain()
    resumed.net[3].p = 0.0
    trainer(Keeper(), max_epochs=3).fit(resumed, ckpt_path=tmp_path / "mid.ckpt")
    for a, b in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


# --- bad input ----------------------------------------------------------------------------------


class NoStep(TinyNet):
    validation_step = pl.LightningModule.validation_step


class NoLoader(TinyNet):
    val_dataloader = pl.LightningModule.val_dataloader


class NoBatch(TinyNet):
    def val_dataloader(self) -> Any:
        return DataLoader(data(4, seed=1), batch_size=16, drop_last=True)


class OneShot(TinyNet):
    def val_dataloader(self) -> Any:
        return iter([(torch.zeros(2, 1, 6, 6), torch.zeros(2).long())] * 9)

    on_validation_epoch_end = pl.LightningModule.on_validation_epoch_end


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        (NoStep, {}, "`NoStep` has no `validation_step`"),
        (NoLoader, {}, "there is no validation loader: pass `val_dataloaders`"),
        (TinyNet, {"limit_val_batches": 0}, r"switched off by `Trainer\(limit_val_batches=0\)`"),
        (NoBatch, {}, "gives no batches"),
        (OneShot, {}, "`list_iterator` is an iterator, which can be consumed only once"),
    ],
)
@pytest.mark.filterwarnings("ignore:You (defined|passed in) a `val")
@pytest.mark.filterwarnings("ignore:Total length of `DataLoader`")
def test_no_validation_is_refused(module: Any, arguments: Any, message: str) -> None:
    def run(trainer: Any, pl_module: Any) -> None:
        with pytest.raises(MisconfigurationException, match=message):
            FitnessEvaluator(trainer, pl_module, "val_loss")

    at_batch_start(run, module(), **arguments)


def test_unknown_metric_lists_what_was_logged() -> None:
    def run(trainer: Any, module: Any) -> None:
        known = "'val_acc', 'val_best', 'val_loss', 'val_loss_epoch'"
        with pytest.raises(MisconfigurationException, match=f"`monitor` .* got 'acc'; .*{known}"):
            FitnessEvaluator(trainer, module, "acc")()

    at_batch_start(run)
