"""What people see of a run: lines and scalars of the search, the table, the report folder."""

from __future__ import annotations

import csv
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelSummary, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from lightning_slimga import ChannelSurgery
from lightning_slimga.callbacks.prune.announcer import Announcer, measured_rows
from lightning_slimga.report import LayerRow
from tests.fits.small_fit import WIDTHS, Net, assert_pruned, fitted, prune, widths


def test_rows_of_layers_are_those_of_a_network_of_that_size() -> None:
    """MACs for one sample: 4x4 and 2x2 places; parameters with bias, γ and β."""
    surgery = ChannelSurgery(Net(), torch.zeros(3, 2, 6, 6))
    mask = np.ones(sum(WIDTHS), dtype=bool)
    mask[[0, 3, 9]] = False  # two channels of the first layer, one of the second
    assert measured_rows(surgery, 3, mask) == [
        LayerRow("body.0", 8, 6, 16 * 9 * 2 * 8, 16 * 9 * 2 * 6, 8 * (18 + 3), 6 * (18 + 3)),
        LayerRow("body.3", 12, 11, 4 * 9 * 8 * 12, 4 * 9 * 6 * 11, 12 * (72 + 2), 11 * (54 + 2)),
    ]


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO)
    return caplog


def test_live_lines_and_the_table_go_to_the_log(said: pytest.LogCaptureFixture) -> None:
    fitted(Net(), prune())
    lines = [line for line in said.text.splitlines() if "search: generation" in line]
    assert any("generation 1/2" in line and "4/8 evaluations" in line for line in lines)
    assert all("best" in line and "mean" in line and "left" in line for line in lines)
    assert "body.3" in said.text
    assert "whole network" in said.text
    assert "search ended: " in said.text


def test_live_lines_go_through_the_progress_bar(
    said: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    fitted(Net(), prune(), TQDMProgressBar(refresh_rate=1), enable_progress_bar=True)
    printed = capsys.readouterr()
    assert "search: generation 1/2" in printed.out + printed.err
    assert "whole network" in printed.out + printed.err
    assert "search: generation" not in said.text


def test_generations_are_scalars_in_the_loggers(tmp_path: Path) -> None:
    callback = prune()
    loggers = [CSVLogger(tmp_path, "csv", ""), TensorBoardLogger(tmp_path, "board", "")]
    fitted(Net(), callback, logger=loggers)
    with (tmp_path / "csv" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("search/best")]
    for row, entry in zip(rows, callback.history, strict=True):
        for name in ("best", "mean", "std", "evaluations"):
            assert float(row[f"search/{name}"]) == pytest.approx(entry[name])
        assert int(row["step"]) == entry["generation"]
    assert any((tmp_path / "board").glob("events*"))


@pytest.mark.filterwarnings("ignore:.*Matplotlib")
@pytest.mark.parametrize("logger", [True, False])
def test_the_report_stands_in_the_folder_of_the_run(tmp_path: Path, logger: bool) -> None:
    log = CSVLogger(tmp_path, "logs", "") if logger else False
    callback = prune(report=True)
    _, module = fitted(Net(), callback, logger=log, default_root_dir=tmp_path / "root")
    folder = tmp_path / ("logs" if logger else "root") / "pruning_report"
    content = json.loads((folder / "report.json").read_text())
    layers = {row["name"]: row for row in content["layers"]}
    assert [row["channels_after"] for row in layers.values()] == list(widths(module))
    assert [row["channels_before"] for row in layers.values()] == list(WIDTHS)
    assert content["params"] == [
        sum(p.numel() for p in Net().parameters()),
        sum(p.numel() for p in module.parameters()),
    ]
    assert content["history"] == callback.history
    assert "body.0" in (folder / "report.md").read_text()


def test_no_report_unless_wanted(tmp_path: Path) -> None:
    fitted(Net(), prune(), default_root_dir=tmp_path)
    assert not any(tmp_path.rglob("*report*"))


def test_a_report_asks_nothing_of_other_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of them may fail at it, which must not leave the others waiting."""
    asked = []
    finish = Announcer.finish

    def alone(self: Announcer, module: Any, *facts: Any) -> None:
        with pytest.MonkeyPatch.context() as patch:
            for name in ("broadcast", "reduce", "barrier", "all_gather"):
                patch.setattr(
                    module.trainer.strategy, name, lambda *a, name=name: asked.append(name)
                )
            finish(self, module, *facts)

    monkeypatch.setattr(Announcer, "finish", alone)
    fit, module = fitted(Net(), prune(report=True), ModelSummary(), enable_model_summary=True)
    assert_pruned(fit, module)
    assert asked == []
    assert (Path(fit.default_root_dir) / "pruning_report" / "report.json").exists()


def test_a_report_that_fails_does_not_end_the_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("lightning_slimga.callbacks.prune.announcer.write_report", fail)
    with pytest.warns(UserWarning, match="pruning report could not be written: .*disk full"):
        fit, module = fitted(Net(), prune(report=True))
    assert fit.current_epoch == 2
    assert_pruned(fit, module)
