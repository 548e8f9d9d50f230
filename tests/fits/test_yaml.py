"""Both callbacks under LightningCLI, from files and from the command line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.cli import LightningCLI

from lightning_slimga import GeneticPruneCallback, SparsityCallback
from lightning_slimga.sparsity.penalties import L1Half
from tests.fits.crash.training_script import Net

YAML = """
trainer:
  max_epochs: 2
  accelerator: cpu
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
    - class_path: lightning_slimga.SparsityCallback
      init_args:
        strength: 1.0e-3
        penalty: {class_path: lightning_slimga.sparsity.penalties.L1Half, init_args: {epsilon: 0.5}}
    - class_path: lightning_slimga.GeneticPruneCallback
      init_args:
        monitor: val_loss
        mode: min
        budget: {macs: 0.5}
        prune_epoch: 1
        population_size: 4
        generations: 2
        report: false
"""
ADDED = (
    "--trainer.accelerator=cpu",
    "--trainer.callbacks+=lightning_slimga.SparsityCallback",
    "--trainer.callbacks.strength=0.01",
    "--trainer.callbacks+=lightning_slimga.GeneticPruneCallback",
    "--trainer.callbacks.monitor=val_loss",
    "--trainer.callbacks.mode=min",
    "--trainer.callbacks.budget.params=20000",
    "--trainer.callbacks.prune_epoch=2",
)


@pytest.fixture(autouse=True)
def _no_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["train.py"])
    # LightningCLI itself calls what newer jsonargparse has renamed.
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")


def cli(*arguments: str, run: bool = False, kind: type[LightningCLI] = LightningCLI) -> Any:
    command = ["fit"] if run else []
    quiet = {"save_config_callback": None, "seed_everything_default": 1}
    return kind(Net, run=run, args=[*command, *arguments], **quiet)


def config(folder: Path, text: str = YAML) -> str:
    path = folder / "config.yaml"
    path.write_text(text)
    return f"--config={path}"


def both(found: Any) -> tuple[SparsityCallback, GeneticPruneCallback]:
    (sparsity,) = (c for c in found.trainer.callbacks if isinstance(c, SparsityCallback))
    (prune,) = (c for c in found.trainer.callbacks if isinstance(c, GeneticPruneCallback))
    return sparsity, prune


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit, match="0"):
        cli(*arguments)
    return capsys.readouterr().out


def test_a_file_alone_prunes(tmp_path: Path) -> None:
    found = cli(config(tmp_path), run=True)
    sparsity, prune = both(found)
    assert isinstance(sparsity.penalty, L1Half)
    assert sparsity.penalty.epsilon == 0.5
    full, kept = prune.plan.summary["macs"]
    assert 0.2 * full < kept <= 0.5 * full
    assert found.model.head.in_features == found.model.body[3].out_channels


def test_the_command_line_changes_the_budget_of_the_file(tmp_path: Path) -> None:
    _, prune = both(cli(config(tmp_path), "--trainer.callbacks.budget.macs=0.3"))
    assert prune.settings.budget == {"macs": 0.3}
    _, prune = both(cli(config(tmp_path), '--trainer.callbacks.budget={"params": 900}'))
    assert prune.settings.budget == {"params": 900}


def test_several_rounds(tmp_path: Path) -> None:
    text = YAML.replace("budget: {macs: 0.5}", "budget: [{macs: 0.8}, {params: 0.5}]")
    text = text.replace("prune_epoch: 1", "prune_epochs: [1, 2]").replace("epochs: 2", "epochs: 3")
    found = cli(config(tmp_path, text), run=True)
    _, prune = both(found)
    assert len(prune.plans) == 2
    full, kept = prune.plan.summary["params"]
    assert kept <= 0.5 * full
    assert found.model.head.in_features == found.model.body[3].out_channels


def test_the_command_line_alone() -> None:
    sparsity, prune = both(cli(*ADDED))
    assert sparsity.strength == 0.01
    assert prune.settings.budget == {"params": 20000}
    assert isinstance(prune.settings.budget["params"], int)
    assert (prune.monitor, prune.mode, prune.prune_epoch) == ("val_loss", "min", 2)


def test_names_without_a_path() -> None:
    short = [argument.replace("=lightning_slimga.", "=") for argument in ADDED]
    sparsity, prune = both(cli(*short))
    assert (sparsity.strength, prune.prune_epoch) == (0.01, 2)


def test_the_printed_configuration_is_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = printed(capsys, config(tmp_path), "--trainer.callbacks.seed=4", "--print_config")
    for line in ("population_size: 4", "max_time: null", "seed: 4", "epsilon: 0.5"):
        assert line in text
    _, again = both(cli(config(tmp_path, text)))
    _, first = both(cli(config(tmp_path), "--trainer.callbacks.seed=4"))
    assert again.settings == first.settings


def test_help_has_a_line_and_a_type_for_each_argument(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "--trainer.callbacks.help=lightning_slimga.GeneticPruneCallback")
    shown = " ".join(text.split())
    assert "Search the best small network in the middle of a fit" in shown
    assert "Untyped" not in shown
    _, prune = both(cli(*ADDED))
    for name in vars(prune.settings):
        assert f"--trainer.callbacks.{name}" in shown
    for part in (
        "name of the metric that judges candidates",
        "(required, type: Literal['min', 'max'])",
        "dict[str, int | float] | list[dict[str, int | float]])",
        "layers keep a multiple of so many channels",
        "path of the `front.json` of an earlier run, to `pick` from without a search. (type",
        "in place of `prune_epoch`: complete epochs before each of several rounds",
        "a float (the best within this share of the dense network's cost, in what the first",
        "default: 24)",
    ):
        assert part in shown


@pytest.mark.parametrize(
    ("option", "messages"),
    [
        ("budgte=1", ["'budgte'", "not accepted"]),
        ("mode=upwards", ['"mode"', "['min', 'max']", "upwards"]),
        ("population_size=many", ['"population_size"', "many"]),
        ("prune_epoch=1.5", ['"prune_epoch"', "1.5"]),
    ],
)
def test_wrong_keys_and_types_are_named(
    option: str, messages: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli(*ADDED, f"--trainer.callbacks.{option}")
    shown = capsys.readouterr().err
    for message in messages:
        assert message in shown


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("round_to=0", "`round_to` to be a whole number of at least 1, but got 0"),
        ("budget.flops=0.5", "limits of some of .*, but got 'flops'"),
        ("budget.params=-1", r"`budget\['params'\]`"),
        ("population_size=1", "`population_size` to be a whole number of at least 2"),
    ],
)
def test_values_out_of_range_are_named(option: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cli(*ADDED, f"--trainer.callbacks.{option}")


def test_a_missing_argument_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli(*(argument for argument in ADDED if "monitor" not in argument))
    assert re.search(r"required: .*monitor|monitor.* required", capsys.readouterr().err)


def test_callbacks_with_options_of_their_own() -> None:
    """For a project that always prunes."""

    class PruneCLI(LightningCLI):
        def add_arguments_to_parser(self, parser: Any) -> None:
            parser.add_lightning_class_args(SparsityCallback, "sparsity")
            parser.add_lightning_class_args(GeneticPruneCallback, "prune")
            parser.set_defaults({"prune.monitor": "val_loss", "prune.mode": "min"})
            parser.link_arguments("prune.prune_epoch", "sparsity.warmup_epochs")

    options = ("--trainer.accelerator=cpu", "--prune.budget.macs=0.3", "--prune.prune_epoch=3")
    sparsity, prune = both(cli(*options, kind=PruneCLI))
    assert prune.settings.budget == {"macs": 0.3}
    assert sparsity.warmup_epochs == 3
