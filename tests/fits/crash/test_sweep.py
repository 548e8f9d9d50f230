"""A few moments of `benchmarks/crash_sweep.py`; the whole sweep is a command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("signal", "code"), [("KILL", -9), ("TERM", 1), ("INT", 1)])
def test_a_run_that_is_resumed_ends_like_the_undisturbed_one(
    signal: str, code: int, tmp_path: Path
) -> None:
    lines = tmp_path / "lines.json"
    command = ["-m", "benchmarks.crash_sweep", "--points=5", "--second=2", f"--signal={signal}"]
    done = subprocess.run(
        [sys.executable, *command, f"--json={lines}", f"--folder={tmp_path / 'runs'}"],
        env={**os.environ, "PYTHONPATH": ":".join([str(ROOT), *filter(None, sys.path)])},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert lines.exists(), done.stderr[-3000:]
    found = json.loads(lines.read_text())
    phases = [kill.partition(":")[0] for line in found for kill in line["kills"]]
    assert set(phases) == {"sparse training", "search", "surgery", "fine-tuning"}
    assert [len(line["kills"]) for line in found] == [1, 2, 1, 2, 1]
    for line in found:
        *struck, last = line["codes"]
        assert struck[0] == code  # it was there, and it ended the run
        assert last == 0
        assert line["damaged"] == []
        assert line["equal"], done.stdout
