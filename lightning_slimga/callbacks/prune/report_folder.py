"""Where the report of a run goes: a folder of its own, and the run of an experiment tracker."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

import lightning.pytorch as pl


def report_folder(trainer: pl.Trainer, name: str) -> Path:
    """Return a folder that no other run has written to.

    Beside the logs of the first logger, in a folder of the run where that logger has none; in
    `default_root_dir` where its logs are no folder on this machine.

    Args:
        trainer: the Trainer; every rank must make the call.
        name: of the folder; a number is appended where it is taken.
    """
    place = _as_path(trainer.log_dir)
    folder = place or Path(trainer.default_root_dir)
    for logger in trainer.loggers[:1]:
        if place is None or _as_path(getattr(logger, "log_dir", None)) != place:
            parts = (getattr(logger, "name", None), getattr(logger, "version", None))
            folder = folder.joinpath(*(str(part) for part in parts if part is not None))
    names = (name if number == 1 else f"{name}-{number}" for number in count(1))
    return next(folder / one for one in names if not _is_taken(folder / one))


def attach(trainer: pl.Trainer, folder: Path) -> None:
    """Hand a report to the loggers whose experiment keeps artifacts, such as MLflow's.

    Args:
        trainer: the Trainer.
        folder: the report; its name is that of the artifacts' folder.
    """
    for logger in trainer.loggers:
        experiment: Any = getattr(logger, "experiment", None)
        run_id = getattr(logger, "run_id", None)
        run = [run_id] if run_id else []
        if callable(getattr(experiment, "log_artifacts", None)):
            where = {"artifact_path": folder.name} if run else {}
            experiment.log_artifacts(*run, str(folder), **where)
        elif callable(getattr(experiment, "log_artifact", None)):
            for file in sorted(folder.iterdir()):
                experiment.log_artifact(*run, str(file))


def _as_path(place: Any) -> Path | None:
    """A folder on this machine, given as a path or as a `file:` URI; None for anything else."""
    text = "" if place is None else str(place)
    scheme = urlparse(text).scheme
    if scheme == "file":
        address = urlparse(text)
        return Path(url2pathname(address.path)) if address.netloc in ("", "localhost") else None
    return Path(text) if text and len(scheme) < 2 else None  # one letter: a drive


def _is_taken(folder: Path) -> bool:
    return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
