from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest

from lightning_slimga.report import FrontRows, LayerRow, plots
from tests.report.example import example_report


def test_gamma_histogram_counts_every_channel() -> None:
    axes = plots.gamma_figure(example_report()).axes[0]
    before, after = axes.containers
    assert sum(bar.get_height() for bar in before) == 168
    assert sum(bar.get_height() for bar in after) == 48
    assert axes.get_yscale() == "log"


def test_gamma_histogram_of_all_zeros() -> None:
    figure = plots.gamma_figure(example_report(gamma_before={"a": [0.0]}, gamma_after={}))
    assert sum(bar.get_height() for bar in figure.axes[0].containers[0]) == 1


def test_fitness_lines_show_history_and_near_seeds() -> None:
    report = example_report()
    figure = plots.fitness_figure(report)
    axes = figure.axes[0]
    lines = {line.get_label(): np.asarray(line.get_ydata()) for line in axes.get_lines()}
    np.testing.assert_array_equal(lines["best"], [entry["best"] for entry in report.history])
    assert lines["random search  0.7490"].tolist() == [0.749, 0.749]
    assert lines["gamma per MAC  0.1690 (off scale)"].size == 0
    assert axes.get_ylim()[0] > 0.5


def test_front_shows_every_point_the_chosen_one_and_the_floor() -> None:
    front = FrontRows("macs", [(100.0, 0.5), (400.0, 0.8)], (1000.0, 0.9), 1, floor=0.7)
    axes = plots.front_figure("val_acc", front).axes[0]
    lines = {line.get_label(): np.asarray(line.get_xydata()) for line in axes.get_lines()}
    assert lines["front"].tolist() == [[0.1, 0.5], [0.4, 0.8]]
    assert lines["chosen: point 1"].tolist() == [[0.4, 0.8]]
    assert lines["before surgery"].tolist() == [[1.0, 0.9]]
    assert lines["floor"][:, 1].tolist() == [0.7, 0.7]
    assert axes.get_ylabel() == "val_acc"


def test_fitness_of_one_constant_generation_with_unknown_values() -> None:
    history = [{"generation": 0, "evaluations": 4, "best": 0.5, "mean": math.nan}]
    report = example_report(history=history, seeds={"uniform": math.nan})
    labels = [line.get_label() for line in plots.fitness_figure(report).axes[0].get_lines()]
    assert labels[-1] == "uniform  nan (off scale)"


def test_channel_bars_have_the_counts_of_the_layers() -> None:
    layers = example_report().layers
    before, after = plots.channels_figure(layers).axes[0].containers
    assert [bar.get_width() for bar in before] == [24, 48, 96]
    assert [bar.get_width() for bar in after] == [12, 12, 24]


def test_thousands_of_layers_can_be_drawn(tmp_path: Path) -> None:
    layers = [LayerRow(str(index), 2, 1, 2, 1, 2, 1) for index in range(2000)]
    figure = plots.channels_figure(layers)
    assert figure.get_size_inches()[1] * 120 < 2**16


def test_only_what_has_data_is_drawn(tmp_path: Path) -> None:
    report = example_report(gamma_before={"a": []}, history=[])
    assert plots.write_plots(tmp_path, report) == ["channels.png"]
    assert [path.name for path in tmp_path.iterdir()] == ["channels.png"]


def test_pyplot_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    plots.write_plots(tmp_path, example_report())
    assert "matplotlib.pyplot" not in sys.modules
