"""What a candidate is worth: cut for a while, batch norm anew, and through the validation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.utilities import rank_zero_warn

from lightning_slimga.callbacks.internals import FitnessEvaluator, average_over_ranks
from lightning_slimga.callbacks.settings import PruningResult, SearchSettings
from lightning_slimga.calls import Call
from lightning_slimga.recalibration import recalibrate, recalibrated
from lightning_slimga.shrinking import Mask
from lightning_slimga.surgery import ChannelSurgery


class CandidateEvaluation:
    """Measures masks by the fit's own validation; the network is as before after each.

    Args:
        trainer: the Trainer, inside ``fit``.
        pl_module: its LightningModule, full size.
        surgery: what cuts the module.
        settings: the callback's arguments.
        evaluator: the validation that the search sees.
        recalibration: training calls from which batch norm takes its statistics.
        result: gets the seconds.
        between_batches: called between the batches of a validation; may raise.
    """

    def __init__(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        surgery: ChannelSurgery,
        settings: SearchSettings,
        *,
        evaluator: FitnessEvaluator,
        recalibration: Sequence[Call],
        result: PruningResult,
        between_batches: Callable[[], None],
    ) -> None:
        self._trainer, self._module = trainer, pl_module
        self._surgery, self._settings = surgery, settings
        self._evaluator, self._result = evaluator, result
        self._calls = recalibration if settings.recalibration_batches else []
        self._average = average_over_ranks(trainer) if settings.recalibration_batches else None
        self._between_batches = between_batches
        self._warned_nan = False

    def fitness(self, mask: Mask) -> float:
        """Return the metric of a candidate, on the data that the search sees."""
        return self._measure(mask, self._evaluator)

    def on_everything(self, masks: Sequence[Mask]) -> list[float]:
        """Return the metrics of masks on all validation data."""
        everything = self._evaluator
        if self._settings.fitness_batches is not None:
            everything = FitnessEvaluator(self._trainer, self._module, self._settings.monitor)
        return [self._measure(mask, everything) for mask in masks]

    def best_of(self, finalists: Sequence[Mask]) -> tuple[Mask, float]:
        """Return the finalist that is best on all validation data, and its metric."""
        values = self.on_everything(finalists)
        order = np.array(values) * (1 if self._settings.mode == "max" else -1)
        best = int(np.argmax(np.where(np.isnan(order), -np.inf, order)))
        return finalists[best], values[best]

    def recalibrate(self) -> None:
        """Give the module, as it is, its batch-norm statistics for good."""
        with self._trainer.precision_plugin.forward_context():
            recalibrate(self._module, self._calls, self._average)

    def _measure(self, mask: Mask, evaluator: FitnessEvaluator) -> float:
        context = self._trainer.precision_plugin.forward_context()
        statistics = recalibrated(self._module, self._calls, self._average)
        with self._surgery.shrunk(mask), self._result.timed("forward"), context, statistics:
            value = evaluator(stop_when=self._go_on)
        if np.isnan(value) and not self._warned_nan:
            self._warned_nan = True
            rank_zero_warn(
                f"`{self._settings.monitor}` of a candidate is NaN; it counts as the worst."
            )
        return value

    def _go_on(self, done: int, running: Callable[[], float]) -> bool:
        del done, running
        self._between_batches()
        return False
