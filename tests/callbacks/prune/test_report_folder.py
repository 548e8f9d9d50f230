"""A report has a folder of its own whatever the logger calls its place, and goes to the tracker."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import Logger

from lightning_slimga.callbacks.prune.report_folder import report_folder
from tests.fits.small_fit import Net, assert_pruned, fitted, prune

pytestmark = pytest.mark.filterwarnings("ignore:.*Matplotlib")


class Tracker(Logger):
    """Like MLFlowLogger: a client that wants the run's id, and a place that may be no path."""

    name, version, run_id = "exp", "run1", "run1"

    def __init__(self, place: Any) -> None:
        super().__init__()
        self.place, self.kept = place, []
        self.client = SimpleNamespace(log_artifacts=self._keep)

    def _keep(self, run: str, folder: str, artifact_path: str) -> None:
        self.kept.append((run, sorted(p.name for p in Path(folder).iterdir()), artifact_path))

    @property
    def save_dir(self) -> Any:
        return self.place

    @property
    def experiment(self) -> Any:
        return self.client

    def log_hyperparams(self, *_: Any, **__: Any) -> None: ...

    def log_metrics(self, *_: Any, **__: Any) -> None:
        raise ConnectionError("away")


def folder_of(place: Any, root: Path) -> Path:
    logger = Tracker(place)
    trainer: Any = SimpleNamespace(log_dir=place, loggers=[logger], default_root_dir=str(root))
    return report_folder(trainer, "pruning_report").relative_to(root)


def test_places_of_all_kinds(tmp_path: Path) -> None:
    end = Path("exp/run1/pruning_report")
    for nowhere in (None, "https://tracker.example/1", "sqlite:///x.db", "s3://bucket/runs"):
        assert folder_of(nowhere, tmp_path) == end
    assert folder_of(f"file:{tmp_path}/mlruns", tmp_path) == "mlruns" / end
    assert folder_of((tmp_path / "my runs").as_uri(), tmp_path) == "my runs" / end
    assert folder_of(tmp_path / "mlruns", tmp_path) == "mlruns" / end


def test_loggers_with_a_folder_of_the_run(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    trainer: Any = SimpleNamespace(log_dir=logger.log_dir, loggers=[logger], default_root_dir="x")
    assert report_folder(trainer, "report") == Path(logger.log_dir) / "report"


def test_a_second_run_leaves_the_first_report_alone(tmp_path: Path) -> None:
    for monitor in ("val_loss", "val_acc"):
        mode = "min" if monitor == "val_loss" else "max"
        fitted(Net(), prune(report=True, monitor=monitor, mode=mode), default_root_dir=tmp_path)
    told = [
        json.loads((tmp_path / name / "report.json").read_text())["monitor"]
        for name in ("pruning_report", "pruning_report-2")
    ]
    assert told == ["val_loss", "val_acc"]


@pytest.mark.filterwarnings("ignore:Tracker did not take a generation")
def test_the_report_goes_to_the_run_and_a_logger_that_is_away_ends_nothing(tmp_path: Path) -> None:
    logger = Tracker("https://tracker.example/1")
    callback = prune(report=True)
    with pytest.raises(ConnectionError):
        logger.log_metrics()
    net = Silent()
    fit, net = fitted(net, callback, logger=logger, default_root_dir=tmp_path)
    assert_pruned(fit, net)
    ((run, files, where),) = logger.kept
    assert (run, where) == ("run1", "pruning_report")
    assert {"report.md", "report.json"} <= set(files)


class Silent(Net):
    """Logs for the callbacks alone."""

    def log(self, *arguments: Any, **options: Any) -> None:
        super().log(*arguments, **{**options, "logger": False})


class Endless(TQDMProgressBar):
    def print(self, *args: Any, **kwargs: Any) -> None:
        self.print(*args, **kwargs)


def test_a_print_that_never_ends_does_not_end_the_fit(tmp_path: Path) -> None:
    fit, net = fitted(
        Net(), prune(report=True), Endless(), enable_progress_bar=True, default_root_dir=tmp_path
    )
    assert_pruned(fit, net)
    assert fit.current_epoch == 2
    assert (tmp_path / "pruning_report" / "report.md").is_file()
