"""The state of a running search on disk, so that a killed run loses at most one generation."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

_NAME = "pruning_search.pt"


class SearchFile:
    """Keeps the state of a search next to the run's checkpoints.

    A state is only taken up by a run whose weights, settings and step are exactly those that
    it was written for: fitness values of another network are worth nothing.

    Args:
        trainer: the Trainer, inside ``fit``.
        pl_module: its module before the search.
        settings: what the search depends on, as text.
    """

    def __init__(self, trainer: pl.Trainer, pl_module: pl.LightningModule, settings: str) -> None:
        self._trainer = trainer
        self._fingerprint = _fingerprint(trainer, pl_module, settings)
        self._path = _folder(trainer) / _NAME

    def read(self) -> dict[str, Any] | None:
        """State of an interrupted search of exactly this network, or None.

        Looked for beside the checkpoint that the fit was resumed from, then in this run's folder.
        """
        folders = [_folder(self._trainer)]
        if self._trainer.ckpt_path:
            folders.insert(0, Path(self._trainer.ckpt_path).parent)
        for folder in folders:
            path = folder / _NAME
            if path.is_file():
                try:
                    content = torch.load(path, weights_only=True)
                except Exception as error:  # whatever is in the file, the search can start over
                    rank_zero_warn(f"{path} cannot be read ({error}); the search starts anew.")
                    continue
                if content["fingerprint"] == self._fingerprint:
                    rank_zero_info(f"the search goes on from {path}")
                    state: dict[str, Any] = content["search"]
                    return state
        return None

    def write(self, state: dict[str, Any]) -> None:
        """Write the state; whoever reads sees the old file or the new one, never a part."""
        if not self._trainer.is_global_zero:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_suffix(f".{os.getpid()}.partial")
        torch.save({"fingerprint": self._fingerprint, "search": state}, partial)
        os.replace(partial, self._path)

    def remove(self) -> None:
        """The search is over and its result applied."""
        if self._trainer.is_global_zero:
            self._path.unlink(missing_ok=True)


def _folder(trainer: pl.Trainer) -> Path:
    for callback in trainer.checkpoint_callbacks:
        dirpath = getattr(callback, "dirpath", None)
        if dirpath:
            return Path(dirpath)
    return Path(trainer.default_root_dir)


def _fingerprint(trainer: pl.Trainer, pl_module: pl.LightningModule, settings: str) -> str:
    """A hash of rank 0's weights, the settings and the step."""
    digest = hashlib.sha256(f"{settings} {trainer.global_step}".encode())
    for name, tensor in pl_module.state_dict().items():
        if isinstance(tensor, torch.Tensor):
            digest.update(name.encode())
            content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
            digest.update(content.numpy().tobytes())
    return str(trainer.strategy.broadcast(digest.hexdigest(), src=0))
