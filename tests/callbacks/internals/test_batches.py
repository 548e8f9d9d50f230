from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    WeightedRandomSampler,
)

from lightning_slimga.callbacks.internals import training_batches
from lightning_slimga.callbacks.internals.batches import private_loader, tensor_bytes
from tests.callbacks.internals.tiny import At, TinyNet, at_batch_start, data, trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*num_workers>0, persistent_workers"),
    pytest.mark.filterwarnings("ignore:.*fork"),
]


class Noisy(Dataset):
    """Augments with torch's global generator, as most augmentation does."""

    def __len__(self) -> int:
        return 48

    def __getitem__(self, index: int) -> Any:
        x, y = data().tensors
        return x[index] + 0.1 * torch.randn(()), y[index]


class Listed:
    """Batches without a DataLoader."""

    def __len__(self) -> int:
        return 6

    def __iter__(self) -> Any:
        return (data()[i : i + 8] for i in range(6))


class Loading(TinyNet):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.source = torch.Generator().manual_seed(7)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if isinstance(batch, dict):
            batch = batch["a"]
        return super().training_step(batch, batch_idx)

    def train_dataloader(self) -> Any:
        if self.kind == "own generator":
            return DataLoader(Noisy(), 8, shuffle=True, generator=self.source)
        if self.kind == "persistent workers":
            return DataLoader(Noisy(), 8, shuffle=True, num_workers=1, persistent_workers=True)
        if self.kind == "weighted":
            sampler = WeightedRandomSampler([1.0] * 48, 48, generator=self.source)
            return DataLoader(Noisy(), 8, sampler=sampler)
        if self.kind == "batch sampler":
            sampler = BatchSampler(RandomSampler(Noisy(), generator=self.source), 8, False)
            return DataLoader(Noisy(), batch_sampler=sampler)
        if self.kind == "no loader":
            return Listed()
        if self.kind == "several":
            return {"a": DataLoader(Noisy(), 8, shuffle=True), "b": DataLoader(Noisy(), 16)}
        if self.kind == "combined":
            loaders = {"a": DataLoader(Noisy(), 8, shuffle=True), "b": DataLoader(Noisy(), 16)}
            return CombinedLoader(loaders, "min_size")
        return DataLoader(Noisy(), 8, shuffle=True)


KINDS = (
    "plain",
    "own generator",
    "persistent workers",
    "weighted",
    "batch sampler",
    "no loader",
    "several",
    "combined",
)


@pytest.mark.parametrize("kind", KINDS)
def test_fetching_leaves_the_fit_alone(kind: str) -> None:
    def train(*callbacks: Any) -> TinyNet:
        torch.manual_seed(2)
        module = Loading(kind)
        trainer(*callbacks).fit(module)
        return module

    fetch = [At(lambda t, m: training_batches(t, m, 3, 1), 1, batch) for batch in (0, 2)]
    plain, fetched = train(), train(*fetch)
    assert [len(f.result) for f in fetch] == [3, 3]
    for a, b in zip(plain.parameters(), fetched.parameters(), strict=True):
        assert torch.equal(a, b)
    first, second = (torch.utils._pytree.tree_leaves(f.result) for f in fetch)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))  # same seed
    if kind in ("several", "combined"):
        assert [set(batch) for batch in fetch[0].result] == [{"a", "b"}] * 3


def test_seed_chooses_the_batches_and_count_is_bounded_by_the_data() -> None:
    def run(trainer: Any, module: Any) -> Any:
        return [training_batches(trainer, module, n, seed) for n, seed in ((2, 1), (2, 2), (99, 1))]

    one, two, all_of_them = at_batch_start(run)
    assert not torch.equal(one[0][0], two[0][0])
    assert len(all_of_them) == 4
    every = torch.cat([x for x, _ in all_of_them])
    assert torch.equal(every.sort(0)[0], data().tensors[0].sort(0)[0])


def test_transfer_hooks_are_honoured() -> None:
    class Hooked(TinyNet):
        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            assert not self.trainer.training or dataloader_idx == 0
            return (batch[0] * 0 + 5, batch[1]) if self.trainer.training else batch

    batches = at_batch_start(lambda t, m: training_batches(t, m, 2, 0), Hooked())
    assert all((x == 5).all() for x, _ in batches)


class Stream(IterableDataset):
    def __iter__(self) -> Any:
        return iter(data())


class Consumed(Stream):
    def __next__(self) -> Any:
        raise StopIteration


def test_iterable_data_set_starts_anew() -> None:
    class Streaming(TinyNet):
        def train_dataloader(self) -> Any:
            return DataLoader(Stream(), batch_size=16)

    (x, _), *rest = at_batch_start(lambda t, m: training_batches(t, m, 3, 0), Streaming())
    assert torch.equal(x, data().tensors[0][:16])
    assert len(rest) == 2


class Locked(RandomSampler):
    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("cannot pickle a lock")


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        (DataLoader(Consumed()), "`Consumed` is an iterator, which can be consumed only once"),
        (iter([1]), "`list_iterator` is an iterator, which"),
        (DataLoader(Noisy(), sampler=Locked(Noisy())), r"`BatchSampler` cannot be copied \(cannot"),
    ],
)
def test_data_that_cannot_be_iterated_twice_is_refused(loader: Any, message: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        private_loader(loader, 4, 2, seed=0)


def test_needs_a_running_fit() -> None:
    with pytest.raises(RuntimeError, match="from `on_train_start` on"):
        training_batches(trainer(), TinyNet(), 1, 0)


def test_a_subclass_keeps_its_own_iteration() -> None:
    class Doubling(DataLoader):
        def __iter__(self) -> Any:
            return (2 * batch for batch in super().__iter__())

    loader = Doubling(torch.arange(8), batch_size=2)
    assert [b.tolist() for b in private_loader(loader, 4, 2, 0)] == [[0, 2], [8, 10]]
    assert len(list(loader)) == 4


def test_bytes_of_nested_tensors_count_once() -> None:
    class Graph:
        def __init__(self) -> None:
            self.x, self.me = torch.zeros(3, dtype=torch.float64), self

    x = torch.zeros(2, 5)
    assert tensor_bytes({"a": [x, x], "b": (Graph(), "text", None)}) == 40 + 24
