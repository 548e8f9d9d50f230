"""How many candidates a second a whole search goes through, beside the plain way.

    python -m benchmarks.candidate_rate                      # a few minutes
    python -m benchmarks.candidate_rate --round-to 8         # widths that suit the processor
    python -m benchmarks.candidate_rate --usual-format       # weights as in most networks
    python -m benchmarks.candidate_rate --threads 2          # by the clock on the wall
    python -m benchmarks.candidate_rate --accelerator gpu    # on a GPU

On the Fashion-MNIST ResNet of the examples at half of its MACs, with all 5,000 validation images
and the callback's defaults (racing, recalibration, memo). A search is everything from the dense
network to the cut one. The plain way zeroes the channels of the full network and calls
`trainer.validate`, once without recalibration, and once with that of the search, without which the
accuracy of a candidate says little (docs/search.md). All that with the example's loader, which cuts
batches out of a tensor, and with an ordinary one, which fetches and transforms single images: a
search reads its validation batches once. Processor time, so that other work on the machine matters
less; with several threads and on a GPU the time on the clock. On a GPU once more with all
validation images in one batch: a small network leaves a GPU waiting for Python, batch by batch.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import Compose, Normalize, ToTensor

from benchmarks.evaluation_cost import plain_way, pruning, quiet, timed
from examples.fashion_mnist import MEAN, STD, FashionClassifier, FashionMNIST

BATCH, EVALUATIONS, REPEATS = 250, 216, 5


class SingleImages(Dataset):
    """The validation images as torchvision's data sets hand them out."""

    def __init__(self, data: FashionMNIST) -> None:
        images, self.labels = data.parts["val"].tensors
        grey = ((images[:, 0] * STD + MEAN) * 255).round()
        self.images = grey.to(torch.uint8).numpy()
        self.transform = Compose([ToTensor(), Normalize((MEAN,), (STD,))])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


class OrdinaryFashionMNIST(FashionMNIST):
    """Validates with a loader like everybody's."""

    def val_dataloader(self) -> DataLoader:
        """Return batches of single images, in their order."""
        return DataLoader(SingleImages(self), batch_size=self.eval_batch_size)


def gpu_clock() -> float:
    """Return the seconds on the clock when the GPU has done its work."""
    torch.cuda.synchronize()
    return time.perf_counter()


CLOCKS = {"cpu": time.process_time, "gpu": gpu_clock}
"""What tells the seconds, by accelerator."""


class Stopwatch(L.Callback):
    """Times the search; stands before the callback that does it."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Start at the first batch after the dense epoch, where the search runs."""
        if trainer.current_epoch == 1:
            self.started = self.clock()

    def on_surgery(self, trainer: L.Trainer, *_: Any) -> None:
        """Stop, and end the fit."""
        self.seconds = self.clock() - self.started
        trainer.should_stop = True


def rates(data: FashionMNIST, options: argparse.Namespace) -> tuple[float, ...]:
    """Return candidates a second, of a search and of the plain way without and with statistics."""
    clock = CLOCKS[options.accelerator] if options.threads == 1 else time.perf_counter
    layout = torch.contiguous_format if options.usual_format else torch.channels_last
    model, watch = FashionClassifier(), Stopwatch(clock)
    model.net.to(memory_format=layout)
    prune = pruning(max_evaluations=EVALUATIONS, report=False, round_to=options.round_to)
    plain, recalibrating = (
        plain_way(model, data, accelerator=options.accelerator, memory_format=layout, training=n)
        for n in (0, prune.settings.recalibration_batches)
    )
    fit = quiet(
        options.accelerator, max_epochs=2, limit_train_batches=200, callbacks=[watch, prune]
    )
    fit.fit(model, data)
    found = [prune.history[-1]["evaluations"] / watch.seconds]
    for way in plain, recalibrating:
        way()  # the first one warms up
        found.append(1 / statistics.median(timed(way, clock) for _ in range(REPEATS)))
    return tuple(found)


def main() -> None:
    """Print both rates for both loaders."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--accelerator", choices=list(CLOCKS), default="cpu")
    parser.add_argument("--round-to", type=int, default=1, help="multiple of channels that stay")
    parser.add_argument("--usual-format", action="store_true", help="weights not in channels-last")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    kinds = {"batches out of a tensor": FashionMNIST, "single images": OrdinaryFashionMNIST}
    for batch in (BATCH,) if options.accelerator == "cpu" else (BATCH, 5000):
        for name, kind in kinds.items():
            L.seed_everything(0, verbose=False)
            ours, others, equal = rates(kind(eval_batch_size=batch), options)
            print(
                f"{name}, batches of {batch}: {ours:.2f} candidates a second, the plain way"
                f" {others:.2f}: {ours / others:.2f} times; with recalibration {equal:.2f}:"
                f" {ours / equal:.2f} times",
                flush=True,
            )


if __name__ == "__main__":
    main()
