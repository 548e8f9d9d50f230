"""Batches of the fit's own data, fetched without disturbing the fit.

A second iterator over a user's loader would disturb the first: it resets persistent workers, and
advances the sampler and its generator. So every loader is copied: same data set, same collation,
same class, but workers, generator and sampler of its own, the latter frozen to the indices it
draws once.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import islice
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader, IterableDataset

from lightning_slimga.callbacks.internals.quiet import in_stage, muted, seeded

_SEED = 0  # of shuffling, and of augmentation in worker processes
Triple = tuple[Any, int, int]
"""A batch, its index within its loader, and the index of the loader."""


class FewSamples:
    """The first samples of every batch, put together by the loader's own `collate_fn`.

    Whatever a batch looks like, it is known how many samples are in it.

    Args:
        most: how many samples of each batch, at least 1.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._seen: list[int | None] = []

    @property
    def samples(self) -> int | None:
        """How many samples the first batch had; None where a loader could not be told."""
        return self._seen[0] if self._seen and None not in self._seen else None

    def of(self, loader: Any) -> dict[str, Any]:
        """What a copy of a loader has instead of its own; nothing where batches come ready-made."""
        if not isinstance(loader, DataLoader) or loader.batch_sampler is None:
            self._seen.append(None)
            return {}
        collate = partial(self._collate, loader.collate_fn)
        # In this process, where the samples can be counted.
        return {"collate_fn": collate, "num_workers": 0, "timeout": 0}

    def _collate(self, collate: Callable[[Any], Any], samples: Any) -> Any:
        plain = isinstance(samples, (list, tuple))
        few = samples[: self.most] if plain else samples
        self._seen.append(len(few) if plain else None)
        return collate(few)


def training_batches(
    trainer: pl.Trainer,
    pl_module: pl.LightningModule,
    count: int,
    seed: int,
    few: FewSamples | None = None,
) -> list[Any]:
    """The first batches of a fresh iteration over the training data, on the device.

    They pass the batch transfer hooks of module and data module. The running fit's own iterator,
    workers, samplers and random number generators stay as they are. An `IterableDataset` is
    iterated anew, which must not change the data set object itself.

    Args:
        trainer: a Trainer whose `fit` has set up its training data (from `on_train_start` on).
        pl_module: the LightningModule of that fit.
        count: how many batches, >= 0; fewer come when the data ends before.
        seed: seed of shuffling and augmentation: the same seed gives the same batches.
        few: take a part of each batch, and count.

    Returns:
        Batches as `training_step` receives them.

    Raises:
        MisconfigurationException: if the training data can be iterated only once.
        RuntimeError: outside of training.
    """
    combined = trainer.fit_loop._combined_loader
    if combined is None:
        raise RuntimeError("training batches can be fetched from `on_train_start` on, not before")
    del pl_module  # the Trainer's own; in the signature so that all parts of this package agree
    with muted(trainer, seed=seed), in_stage(trainer, "train"):
        loaders = [
            private_loader(loader, count, count, seed, few=few) for loader in combined.flattened
        ]
        batches = islice(_recombined(combined, loaders, combined.limits), count)
        return [to_device(trainer, batch, 0) for batch, _, _ in batches]


def validation_data(
    trainer: pl.Trainer,
    limit_batches: float | None,
    *,
    shuffled: bool = False,
    few: FewSamples | None = None,
) -> tuple[Callable[[], Iterator[Triple]], list[float]]:
    """A way to iterate a fixed part of the validation data, again and again.

    Args:
        trainer: a Trainer inside `fit`, with validation data.
        limit_batches: as for :class:`FitnessEvaluator`.
        shuffled: whether the batches of each loader come in a random order, drawn once; those of
            an `IterableDataset` cannot.
        few: take a part of each batch, and count.

    Returns:
        A function that starts an iteration over (batch, batch index, loader index), the batch as
        the loader gives it; and the number of batches per loader (`inf` where unknown).
    """
    user = trainer.fit_loop.epoch_loop.val_loop
    if user._combined_loader is None:
        with seeded(_SEED), in_stage(trainer, "validate"):
            user.setup_data()
    combined = user._combined_loader
    assert combined is not None
    limits = [_limited(available, limit_batches) for available in user._max_batches]
    with seeded(_SEED):
        loaders = [
            private_loader(loader, available, limit, _SEED, shuffled=shuffled, few=few)
            for loader, available, limit in zip(
                combined.flattened, user._max_batches, limits, strict=True
            )
        ]

    def start() -> Iterator[Triple]:
        for loader in loaders:
            if isinstance(loader, DataLoader) and loader.generator is not None:
                loader.generator.manual_seed(_SEED)
        return _recombined(combined, loaders, limits)

    return start, limits


def to_device(trainer: pl.Trainer, batch: Any, dataloader_idx: int) -> Any:
    """Do with a batch what the Trainer's loops do before a step: convert, hooks, move."""
    batch = trainer.precision_plugin.convert_input(batch)
    batch = trainer.lightning_module._on_before_batch_transfer(batch, dataloader_idx=dataloader_idx)
    return trainer.strategy.batch_to_device(batch, dataloader_idx=dataloader_idx)


def private_loader(
    loader: Any,
    available: float,
    wanted: float,
    seed: int,
    *,
    shuffled: bool = False,
    few: FewSamples | None = None,
) -> Any:
    """Copy a loader so that iterating the copy leaves the original alone.

    Where the indices are known beforehand, `wanted` of the first `available` batches are taken
    evenly spaced: the first ones of a validation set that is sorted by class would be a sample
    of a few classes.

    Args:
        loader: a DataLoader, or any iterable of batches.
        available: number of batches to choose from; may be `inf`.
        wanted: number of batches to choose; may be `inf`.
        seed: seed of the copy's generator.
        shuffled: whether to draw the order of the batches, where the indices are known.
        few: take a part of each batch, and count.

    Returns:
        A DataLoader of the same class; other iterables as they are.

    Raises:
        MisconfigurationException: if the data can be iterated only once, or the sampler cannot
            be copied.
    """
    shortened = {} if few is None else few.of(loader)
    if not isinstance(loader, DataLoader):
        _refuse_one_shot(loader)
        return loader
    own: dict[str, Any] = {
        "generator": torch.Generator().manual_seed(seed),
        "persistent_workers": False,
        "_iterator": None,
        **shortened,
    }
    if isinstance(loader.dataset, IterableDataset):
        if loader.num_workers == 0:
            _refuse_one_shot(loader.dataset)
    else:
        kind = "sampler" if loader.batch_sampler is None else "batch_sampler"
        own[kind] = _frozen(_copied(loader, kind, seed), available, wanted)
        if shuffled and not math.isinf(available):
            random.Random(seed).shuffle(own[kind])
    clone = copy.copy(loader)
    vars(clone).update(own)  # DataLoader forbids to set these, because its iterator copies them
    return clone


def _copied(loader: DataLoader[Any], kind: str, seed: int) -> Iterable[Any]:
    """A (batch) sampler in its present state, but with freshly seeded generators."""
    sampler = getattr(loader, kind)
    shared: dict[int, Any] = {id(loader.dataset): loader.dataset}
    for owner in (loader, loader.sampler, sampler, getattr(sampler, "sampler", None)):
        generator = getattr(owner, "generator", None)
        if isinstance(generator, torch.Generator):
            shared[id(generator)] = torch.Generator(generator.device).manual_seed(seed)
    try:
        copied: Iterable[Any] = copy.deepcopy(sampler, shared)
    except Exception as error:
        raise MisconfigurationException(
            f"The search iterates a copy of your data loader's sampler, but"
            f" `{type(sampler).__name__}` cannot be copied ({error}). Give it a `__deepcopy__`."
        ) from error
    return copied


def _frozen(sampler: Iterable[Any], available: float, wanted: float) -> Iterable[Any]:
    if math.isinf(available):
        return sampler if math.isinf(wanted) else list(islice(sampler, int(wanted)))
    drawn = list(islice(sampler, int(available)))
    count = min(int(wanted), len(drawn))
    return [drawn[i * len(drawn) // count] for i in range(count)]


def _refuse_one_shot(data: Any) -> None:
    if hasattr(data, "__next__"):
        raise MisconfigurationException(
            f"The search needs to iterate the data a second time, but `{type(data).__name__}` is an"
            " iterator, which can be consumed only once. Pass an iterable whose `__iter__` starts"
            " anew, such as a `DataLoader` over a `Dataset`."
        )


def _recombined(combined: Any, loaders: list[Any], limits: Any) -> Iterator[Triple]:
    """Iterate `loaders` in the way that the user's CombinedLoader combines its own."""
    clone = copy.copy(combined)
    clone._iterator = None
    clone.flattened = loaders
    clone.limits = limits
    return iter(clone)


def _limited(available: float, limit: float | None) -> float:
    if limit is None:
        return available
    if isinstance(limit, int):
        return min(available, limit)
    if math.isinf(available):
        raise MisconfigurationException(
            "Expected argument `fitness_batches` to be an int, because the length of the validation"
            f" data is unknown, but got {limit}."
        )
    return max(1, int(available * limit)) if available else 0


def private_copy(batch: Any) -> Any:
    """A copy of a batch that a step may change in place."""
    return tree_map(lambda x: x.clone() if isinstance(x, Tensor) else copy.deepcopy(x), batch)


def tensor_bytes(value: Any, _seen: set[int] | None = None) -> int:
    """Bytes of all tensors in nested containers and plain objects."""
    seen = set() if _seen is None else _seen
    if id(value) in seen:
        return 0
    seen.add(id(value))
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, Mapping):
        children: Iterable[Any] = value.values()
    elif isinstance(value, (list, tuple, set)):
        children = value
    else:
        children = getattr(value, "__dict__", {}).values()
    return sum(tensor_bytes(child, seen) for child in children)
