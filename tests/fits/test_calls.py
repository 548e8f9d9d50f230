"""However a network is called and whatever a batch looks like: all of it is seen, per sample."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from enum import Enum
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from torch.utils.flop_counter import FlopCounterMode

from lightning_slimga.running import Call
from tests.fits.small_fit import Net, data, fitted, prune


def macs_of(module: nn.Module, *inputs: Any) -> int:
    """Torch's own count."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(*inputs)
    return int(counter.get_total_flops()) // 2


class Packed(Net):
    """Unpacks whatever its loaders put together; counts MACs as (6, 6) images do."""

    def __init__(self) -> None:
        super().__init__()
        self.one = macs_of(self, torch.zeros(1, 2, 6, 6))

    def unpacked(self, batch: Any) -> Any:
        return batch.x, batch.y

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(self.unpacked(batch), batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step(self.unpacked(batch), batch_idx)

    def train_dataloader(self) -> Any:
        return DataLoader(data(), batch_size=12, collate_fn=self.collate)

    def val_dataloader(self) -> Any:
        return DataLoader(data(20, seed=1), batch_size=20, collate_fn=self.collate)

    @staticmethod
    def collate(items: Any) -> Any:
        return Batch(torch.stack([x for x, _ in items]), torch.stack([y for _, y in items]))


@dataclass
class Batch:
    x: Tensor
    y: Tensor


class TakesBatches(Packed):
    """A dataclass goes into the network itself."""

    def unpacked(self, batch: Any) -> Any:
        return batch, batch.y

    def forward(self, x: Any) -> Tensor:
        return super().forward(x.x if isinstance(x, Batch) else x)


class Slotted:
    __slots__ = ("x", "y")

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y


class TakesSlots(TakesBatches):
    """An object that no `__dict__` shows."""

    def forward(self, x: Any) -> Tensor:
        return Net.forward(self, x.x if isinstance(x, Slotted) else x)

    @staticmethod
    def collate(items: Any) -> Any:
        return Slotted(*vars(Packed.collate(items)).values())

    def log(self, *args: Any, **kwargs: Any) -> None:
        super().log(*args, **{"batch_size": 4, **kwargs})

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        return batch


class TakesLists(Packed):
    """Images of a list go in one by one, as in detection."""

    def unpacked(self, batch: Any) -> Any:
        return [x for x, _ in batch], torch.stack([y for _, y in batch])

    def forward(self, x: Any) -> Tensor:
        return super().forward(torch.stack(x) if isinstance(x, list) else x)

    @staticmethod
    def collate(items: Any) -> Any:
        return items


class TakesTables(Packed):
    """A dict with a tensor that has no batch dimension, and one that has no dimension."""

    def unpacked(self, batch: Any) -> Any:
        return {"x": batch.x, "table": torch.ones(12, 2, 1, 1), "one": torch.tensor(1.0)}, batch.y

    def forward(self, x: Any) -> Tensor:
        return super().forward(x["x"] * x["table"][0] * x["one"] if isinstance(x, dict) else x)


class TwoViews(Packed):
    """Two views of a sample are two samples to the network."""

    def unpacked(self, batch: Any) -> Any:
        return torch.cat([batch.x, batch.x.flip(-1)]), torch.cat([batch.y, batch.y])


class Streamed(Packed):
    """The data come in a stream, in batches that a DataLoader puts together."""

    def val_dataloader(self) -> Any:
        return DataLoader(Stream(), batch_size=10, collate_fn=self.collate)

    train_dataloader = val_dataloader


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(data(20, seed=1))


@pytest.mark.filterwarnings("ignore:Trying to infer the `batch_size`")
@pytest.mark.filterwarnings("ignore:Your `IterableDataset` has `__len__`")
@pytest.mark.parametrize(
    "kind", [TakesBatches, TakesSlots, TakesLists, TakesTables, TwoViews, Streamed]
)
def test_macs_are_those_of_one_sample(kind: type[Packed]) -> None:
    callback = prune(budget={"macs": 0.8})
    module = kind()
    fitted(module, callback)
    assert callback.plan is not None
    small = macs_of(module, torch.zeros(1, 2, 6, 6))
    assert callback.plan.summary["macs"] == [module.one, small]
    assert small <= 0.8 * module.one


class Halves:
    def __len__(self) -> int:
        return 2

    def __iter__(self) -> Iterator[Any]:
        x, y = data(20, seed=1).tensors
        return iter([[x[:12], x[12:], y]] * 2)


class ReadyMade(Packed):
    """Batches that nobody has put together, of a tensor for each half of the images."""

    def unpacked(self, batch: Any) -> Any:
        return batch[:2], batch[2]

    def forward(self, x: Any) -> Tensor:
        return super().forward(torch.cat([*x]) if isinstance(x, list) else x)

    def val_dataloader(self) -> Any:
        return Halves()

    train_dataloader = val_dataloader


@pytest.mark.filterwarnings("ignore:Trying to infer the `batch_size`")
@pytest.mark.parametrize("told", [None, 20])
def test_samples_that_cannot_be_counted_can_be_given(told: int | None) -> None:
    module, callback = ReadyMade(), prune(budget={"macs": 0.8}, samples_per_batch=told)
    with nullcontext() if told else pytest.warns(UserWarning, match="Pass `samples_per_batch` to"):
        fitted(module, callback)
    assert callback.plan is not None
    times = 1 if told else 20
    assert callback.plan.summary["macs"][0] == times * module.one


class Task(Enum):
    WHAT = 0
    WHERE = 1


class ManyWays(Net):
    """Norms and heads by a choice that the call makes."""

    choices: tuple[Any, Any] = (0, 1)

    def __init__(self) -> None:
        super().__init__()
        self.body[1], self.head = nn.Identity(), nn.Identity()
        self.norms = nn.ModuleList([nn.BatchNorm2d(8), nn.BatchNorm2d(8)])
        self.heads = nn.ModuleList([nn.Linear(12, 4), nn.Linear(12, 4)])

    def forward(self, x: Tensor, choice: Any = None) -> Tensor:
        way = self.choices.index(choice)
        x = self.norms[way](self.body[0](x))
        return self.heads[way](self.body[2:](x).mean((2, 3)))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return sum(F.cross_entropy(self(batch[0], choice), batch[1]) for choice in self.choices)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        for choice in self.choices:
            loss = F.cross_entropy(self(batch[0], choice), batch[1])
            self.log(f"val_loss{self.choices.index(choice) or ''}", loss)

    def runs_every_way(self, widths: tuple[int, int]) -> None:
        assert sum(widths) < 20
        assert [norm.num_features for norm in self.norms] == [widths[0]] * 2
        assert [head.in_features for head in self.heads] == [widths[1]] * 2
        for choice in self.choices:
            assert self(torch.zeros(2, 2, 6, 6), choice).shape == (2, 4)


class ByEnum(ManyWays):
    choices = (Task.WHAT, Task.WHERE)


class ByPair(ManyWays):
    choices = ((0, 3), (0, 5))


class ByLoader(ManyWays):
    """The second validation loader, and the second half of the training data, go the second way."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0], batch_idx % 2), batch[1])

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        loss = F.cross_entropy(self(batch[0], dataloader_idx), batch[1])
        self.log(f"val_loss{dataloader_idx or ''}", loss, add_dataloader_idx=False)

    def val_dataloader(self) -> Any:
        return [super().val_dataloader()] * 2


@pytest.mark.parametrize("kind", [ManyWays, ByEnum, ByPair, ByLoader])
def test_every_choice_is_seen(kind: type[ManyWays]) -> None:
    module, callback = kind(), prune()
    one = macs_of(module, torch.zeros(1, 2, 6, 6), module.choices[0])
    fitted(module, callback)
    module.runs_every_way((module.body[0].out_channels, module.body[3].out_channels))
    assert callback.plan is not None
    assert callback.plan.summary["macs"][0] == one


class Embeds(Net):
    """A projection that no step of a fit uses."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(12, 3)

    def forward(self, x: Tensor, embed: bool = False) -> Tensor:
        features = self.body(x).mean((2, 3))
        return self.project(features) if embed else self.head(features)

    def validation_step(self, batch: Any, *rest: Any) -> None:
        super().validation_step(batch, 0)


class Predicts(Embeds):
    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        return self(batch[0], embed=True)


class PredictsOnlyBatch(Embeds):
    def predict_step(self, batch: Any) -> Tensor:
        assert not self.training
        return self.project(self.body(batch[0]).mean((2, 3)))


class PredictsOtherData(Embeds):
    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(batch["image"], embed=True)


@pytest.mark.parametrize("kind", [Predicts, PredictsOnlyBatch])
def test_what_predict_does_is_seen(kind: type[Embeds]) -> None:
    trainer, module = fitted(kind(), prune(budget={"params": 0.6}))
    assert module.body[0].out_channels < 8
    assert module.project.in_features == module.body[3].out_channels
    assert len(trainer.predict(module)) == 1


X = torch.zeros(2, 2, 6, 6)


@pytest.mark.parametrize(
    "given",
    [
        [(X, True)],
        [{"x": X, "embed": True}, X],
        [Call("", (X,), {"embed": True})],
        lambda module: [(module.body[0].weight.new_zeros(2, 2, 6, 6), True)],
    ],
)
def test_calls_that_a_fit_does_not_show_are_given(given: Any) -> None:
    callback = prune(budget={"params": 0.6}, example_calls=given)
    _, module = fitted(PredictsOtherData(), callback)
    assert module.project.in_features == module.body[3].out_channels < 12
    assert module(X, embed=True).shape == (2, 3)
    assert callback.plan is not None
    assert callback.plan.summary["macs"][1] == macs_of(module, X[:1])
    assert "example_calls" in repr(callback)


@pytest.mark.parametrize("given", [[X.flatten(1)], lambda module: [Call("head", (X,))]])
def test_calls_that_cannot_be_run_are_refused(given: Any) -> None:
    with pytest.raises(
        MisconfigurationException, match=r"`example_calls` to hold inputs .* RuntimeE"
    ):
        fitted(Embeds(), prune(example_calls=given))


def test_a_fit_is_not_disturbed_by_what_predict_does() -> None:
    class Counts(Predicts):
        seen = 0

        def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
            self.seen += 1
            self.log("val_loss", 0.0)
            torch.rand(3)
            return super().predict_step(batch, batch_idx)

    class Fails(Predicts):
        def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
            super().predict_step(batch, batch_idx)
            raise KeyError("image")

    modules: list[pl.LightningModule] = [
        fitted(kind(), prune(example_calls=[(X, True)]))[1] for kind in (Counts, Fails, Predicts)
    ]
    for module in modules[1:]:
        for name, value in module.state_dict().items():
            assert torch.equal(value, modules[0].state_dict()[name])
    assert modules[0].seen == 0


class Experts(Net):
    """An image goes to the expert of its class; the first images of the data are of one class."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 12)) for _ in range(4)
        )

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        features = self.body(x).mean((2, 3))
        for k, expert in enumerate(self.experts):
            if (y == k).any():
                features = torch.where((y == k)[:, None], features + expert(features), features)
        return self.head(features)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(*batch), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self(*batch), batch[1]))

    def train_dataloader(self) -> Any:
        x, y = data(48).tensors
        order = y[:24].argsort(stable=True)
        return DataLoader([(x[i], y[i]) for i in order], batch_size=24)

    val_dataloader = train_dataloader


def test_experts_that_a_batch_reaches_are_cut() -> None:
    _, module = fitted(Experts(), prune(budget={"params": 0.6}))
    assert any(expert[0].out_features < 10 for expert in module.experts)
    x, y = data(24).tensors
    assert module(x, y).shape == (24, 4)


class Late(Embeds):
    """Calls the projection in an epoch that comes later, and in the search as soon as asked to."""

    early = False

    def validation_step(self, batch: Any, *rest: Any) -> None:
        super().validation_step(batch, 0)
        if self.early and self.body[3].out_channels < 12:
            self(batch[0], embed=True)


@pytest.mark.parametrize("kind", [Embeds, PredictsOtherData])
def test_what_no_call_reaches_is_named_before_the_search(kind: type[Embeds]) -> None:
    with pytest.warns(UserWarning, match=r"reached project \(could read body\.3\): left as it is"):
        _, module = fitted(kind(), prune(budget={"params": 0.6}))
    assert module.project.in_features == 12


def test_what_cannot_read_channels_is_named_without_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    module = Net()
    module.spare = nn.Linear(5, 3)
    caplog.set_level("INFO", logger="lightning.pytorch.utilities.rank_zero")
    callback = prune()
    fitted(module, callback)
    assert "has reached spare: left as it is" in caplog.text


@pytest.mark.filterwarnings("ignore:No call in training, validation or prediction has reached")
def test_a_candidate_that_fails_for_it_says_so() -> None:
    module = Late()
    module.early = True
    with pytest.raises(RuntimeError, match=r"cannot be run: project, which no .* `GeneticPruneCa"):
        fitted(module, prune(budget={"params": 0.5}))
    assert module.body[3].out_channels == 12
