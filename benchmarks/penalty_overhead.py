"""What the sparsity penalty adds to a training step: `python benchmarks/penalty_overhead.py`.

Times the callback's work on one step (find the gradient's owners, form the sub-gradient of all γ at
once, add it) and a whole Lightning training step with and without the callback, in turns, so that a
busy machine disturbs both alike. Prints the median of each and the overhead, the former over the
latter.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import lightning.pytorch as pl
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_slimga.callbacks.sparsity.callback import SparsityCallback


class Classifier(pl.LightningModule):
    """A torchvision network on random images."""

    def __init__(self, name: str, batch: int, size: int, steps: int) -> None:
        super().__init__()
        self.net = torchvision.models.get_model(name, num_classes=10)
        self.batch, self.images = batch, torch.randn(batch * steps, 3, size, size)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the cross-entropy."""
        images, labels = batch
        return nn.functional.cross_entropy(self.net(images), labels)

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Return random images, all of class 0."""
        labels = torch.zeros(len(self.images), dtype=torch.int64)
        return DataLoader(TensorDataset(self.images, labels), batch_size=self.batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return SGD with momentum."""
        return torch.optim.SGD(self.parameters(), lr=1e-3, momentum=0.9)


class Stopwatch(pl.Callback):
    """Switches the callback on and off from step to step, and times steps and hooks."""

    def __init__(self, sparsity: SparsityCallback) -> None:
        self.seconds: dict[str, list[float]] = {"hook": [], "with": [], "without": []}
        self.sparsity, self.hook, self.on = sparsity, sparsity.on_before_optimizer_step, False
        sparsity.on_before_optimizer_step = self.timed_hook  # type: ignore[method-assign]

    def timed_hook(self, *args: Any) -> None:
        """Run the callback's hook on every other step."""
        if self.on:
            self._wait(args[1])
            start = time.perf_counter()
            self.hook(*args)
            self._wait(args[1])
            self.seconds["hook"].append(time.perf_counter() - start)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        """Start the clock."""
        self.on = not self.on
        self._wait(pl_module)
        self.start = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        """Stop the clock."""
        self._wait(pl_module)
        self.seconds["with" if self.on else "without"].append(time.perf_counter() - self.start)

    @staticmethod
    def _wait(module: pl.LightningModule) -> None:
        if module.device.type == "cuda":
            torch.cuda.synchronize()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="resnet18", help="a torchvision classifier")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=64, help="pixels along an edge")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--penalty", default="l1_2")
    options = parser.parse_args()

    watch = Stopwatch(SparsityCallback(1e-5, penalty=options.penalty, log=False))
    pl.Trainer(
        max_epochs=1,
        callbacks=[watch.sparsity, watch],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(Classifier(options.model, options.batch, options.size, options.steps))

    hook, with_, without = (1e3 * statistics.median(v[3:]) for v in watch.seconds.values())
    print(f"{options.model}, batch {options.batch} x {options.size}², {options.penalty}")
    print(f"step {without:.2f} ms, with penalty {with_:.2f} ms, of it the hook {hook:.3f} ms")
    print(f"overhead {hook / without:.2%}")


if __name__ == "__main__":
    main()
