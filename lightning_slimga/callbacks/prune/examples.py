"""The few calls on few samples that show how a fit runs its network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_warn

from lightning_slimga.callbacks.internals import (
    FewSamples,
    broadcast,
    capture_calls,
    capture_predictions,
    everywhere,
    share_calls,
    training_batches,
)
from lightning_slimga.callbacks.prune.settings import SearchSettings
from lightning_slimga.running.calls import (
    FEW_SAMPLES,
    MORE_SAMPLES,
    Call,
    calls_from_example,
    counted_once,
    examples_of,
    reach,
    representatives,
    rows,
)
from lightning_slimga.running.model_state import preserved
from lightning_slimga.running.torch_settings import eager

_BATCHES = 4
"""Batches of each loader that are watched: some choices (a domain) differ between them."""


@dataclass(frozen=True)
class Examples:
    """How a network is run, the same on every rank.

    Attributes:
        evaluating: calls in evaluation mode.
        training: calls in training mode.
        samples: samples in those calls in evaluation mode that count.
    """

    evaluating: list[Call]
    training: list[Call]
    samples: int


class ExampleFinder:
    """Finds examples in a fit.

    Args:
        trainer: the Trainer, inside ``fit``.
        module: its LightningModule.
        settings: the callback's arguments.
    """

    def __init__(
        self, trainer: pl.Trainer, module: pl.LightningModule, settings: SearchSettings
    ) -> None:
        self._trainer, self._module, self._settings = trainer, module, settings

    def find(self, training: Sequence[Call], evaluating: Sequence[Call]) -> Examples:
        """Choose the calls; every rank must do so.

        Args:
            training: calls that training makes on whole batches.
            evaluating: those that validation makes.

        Raises:
            MisconfigurationException: when the network does not run on what `example_calls` holds.
        """
        in_training, _ = self._few(True, training)
        small, samples = self._few(False, evaluating)
        if self._settings.samples_per_batch is not None:
            small, samples = representatives(evaluating), self._settings.samples_per_batch
        if not broadcast(self._trainer, samples):
            rank_zero_warn(
                "How many samples a validation batch has cannot be told from what the network is"
                " called with, so MACs (of the budget, too) are those of the calls on one batch,"
                " not of one sample. Pass `samples_per_batch` to `GeneticPruneCallback`."
            )
        small = counted_once(small)
        others = [replace(call, counted=False) for call in [*self._predicted(), *self._given()]]
        small = representatives([*small, *others])
        return Examples(
            share_calls(self._trainer, small),
            share_calls(self._trainer, in_training),
            broadcast(self._trainer, samples or 1),
        )

    def _few(self, training: bool, whole: Sequence[Call]) -> tuple[list[Call], int | None]:
        """As few samples as reach all modules that whole batches reach, put together by the loader.

        Where that cannot be done, whole batches are cut along their first dimension.
        """
        wanted = reach(whole)
        for most in MORE_SAMPLES:
            calls, samples = self._watched(training, most)
            enough = samples is not None and wanted <= reach(calls)
            if everywhere(self._trainer, enough):
                assert samples is not None
                return representatives(calls), self._rows(training, calls, samples)
        return examples_of(self._module, whole, FEW_SAMPLES, training=training)

    def _watched(self, training: bool, most: int) -> tuple[list[Call], int | None]:
        """What is called with so many samples of each batch, and how many they were."""
        trainer, module, few = self._trainer, self._module, FewSamples(most)
        try:
            seed = self._settings.seed
            first = FewSamples(most)
            batches = training_batches(trainer, module, _BATCHES, seed, few=first)
            calls = capture_calls(trainer, module, batches, training=training, few=few)
        except Exception:  # whatever a network or a `collate_fn` raises that needs more samples
            return [], None
        return calls, first.samples if training else few.samples

    def _rows(self, training: bool, calls: Sequence[Call], samples: int) -> int:
        if training:
            return samples
        others, more = self._watched(training, samples + 1)
        return rows(counted_once(calls), others, samples, more) if more else samples

    def _predicted(self) -> list[Call]:
        return capture_predictions(
            self._trainer, self._module, _BATCHES, FewSamples(MORE_SAMPLES[0])
        )

    def _given(self) -> list[Call]:
        """What the user has given, on the device."""
        given: Any = self._settings.example_calls
        device = self._trainer.strategy.root_device
        examples = given(self._module) if callable(given) else given or ()
        calls = [call.to(device) for one in examples for call in calls_from_example(one)]
        for call in calls:
            try:
                with eager(), preserved(self._module), torch.no_grad():
                    self._module.eval()
                    call.run(self._module)
            except Exception as error:
                raise MisconfigurationException(
                    "Expected argument `example_calls` to hold inputs that the network runs on,"
                    f" but a call of {call.module or 'the LightningModule'} raised"
                    f" {type(error).__name__}: {error}. Each is what one call receives (a Tensor,"
                    " a tuple of arguments, a dict of keyword arguments, or a `Call`)."
                ) from error
        return calls
