"""The state of a running search on disk, so that a killed run loses at most one generation."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_slimga.callbacks.internals import broadcast

_NAME = "pruning_search.pt"


class SearchFile:
    """Keeps the state of a search next to the run's checkpoints.

    A state is only taken up by a run whose weights, settings and step are exactly those that
    it was written for: fitness values of another network are worth nothing. The file stays until
    the fit ends: before a checkpoint holds the small network, a killed run needs it again.

    Args:
        trainer: the Trainer, inside ``fit``.
        pl_module: its module before the search.
        settings: what the search depends on, as text.

    Attributes:
        weights: a hash of rank 0's weights.
    """

    def __init__(self, trainer: pl.Trainer, pl_module: pl.LightningModule, settings: str) -> None:
        self._trainer = trainer
        self.weights = _hashed(trainer, pl_module)
        text = f"{self.weights} {trainer.global_step} {settings}"
        self._fingerprint = hashlib.sha256(text.encode()).hexdigest()
        self._path = _path(trainer)

    def read(self, offered: dict[str, Any] | None = None) -> dict[str, Any] | None:
        """State of an interrupted search of exactly this network, or None.

        Looked for beside the checkpoint that the fit was resumed from and in this run's folder;
        of several the one that has searched longest. Every rank gets what rank 0 has found.

        Args:
            offered: what :meth:`packed` has returned, from a checkpoint.
        """
        found = [offered] if offered is not None else []
        if self._trainer.is_global_zero:
            found += self._files()
        states = [one["search"] for one in found if one["fingerprint"] == self._fingerprint]
        state = max(states, key=lambda state: float(state["seconds"]), default=None)
        state = broadcast(self._trainer, state)
        if state is not None:
            rank_zero_info("the search goes on where it was interrupted")
        return state

    def packed(self, state: dict[str, Any]) -> dict[str, Any]:
        """A state together with what it belongs to, plain data."""
        return {"fingerprint": self._fingerprint, "search": state}

    def write(self, state: dict[str, Any]) -> None:
        """Write the state; whoever reads sees the old file or the new one, never a part."""
        if self._path is None or not self._trainer.is_global_zero:
            return
        partial = self._path.with_suffix(f".{os.getpid()}.partial")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(self.packed(state), partial)
            os.replace(partial, self._path)
        except OSError as error:
            rank_zero_warn(
                f"the state of the search cannot be saved to {self._path} ({error}): if this run"
                " is interrupted, the search has to start over"
            )
            self._path = None

    def _files(self) -> list[dict[str, Any]]:
        paths = [] if self._path is None else [self._path]
        if self._trainer.ckpt_path:
            paths.append(Path(self._trainer.ckpt_path).parent / _NAME)
        contents = []
        for path in dict.fromkeys(paths):
            if path.is_file():
                try:
                    contents.append(torch.load(path, weights_only=True))
                except Exception as error:  # whatever is in the file, the search can start over
                    rank_zero_warn(f"{path} cannot be read ({error}); it is ignored.")
        return contents


def remove_search_file(trainer: pl.Trainer) -> None:
    """The fit is over: nobody will resume it."""
    path = _path(trainer)
    if path is not None and trainer.is_global_zero:
        for file in (path, *path.parent.glob(f"{path.stem}.*.partial")):
            file.unlink(missing_ok=True)


def _path(trainer: pl.Trainer) -> Path | None:
    """In the folder of the checkpoints; None without any on this machine: nobody could resume."""
    for callback in trainer.checkpoint_callbacks:
        folder = getattr(callback, "dirpath", None)
        if folder and "://" not in str(folder):
            return Path(folder) / _NAME
    return None


def _hashed(trainer: pl.Trainer, pl_module: pl.LightningModule) -> str:
    digest = hashlib.sha256()
    for name, tensor in pl_module.state_dict().items():
        if isinstance(tensor, torch.Tensor):
            digest.update(name.encode())
            # A copy: torch never again resizes a tensor that NumPy has looked at.
            content = tensor.detach().clone().cpu().contiguous().flatten().view(torch.uint8)
            digest.update(content.numpy().tobytes())
    return broadcast(trainer, digest.hexdigest())
