"""Start the script of this folder as users start theirs, and judge it by what it prints."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).with_name("fits.py")
LAUNCHERS = ("script", "torchrun")


def launch(
    launcher: str, *names: str, timeout: float = 240, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the fits `names` in two processes.

    Args:
        launcher: "script" starts the script once, and Lightning starts the second process;
            "torchrun" starts both.
        names: keys of `fits.FITS`.
        timeout: seconds after which the test fails.
        environment: variables for the processes.
    """
    command = [sys.executable]
    if launcher == "torchrun":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command += ["-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}"]
    inherited = {k: os.environ[k] for k in ("PATH", "HOME", "TMPDIR") if k in os.environ}
    paths = [str(SCRIPT.parents[2]), *filter(None, sys.path)]
    return subprocess.run(
        [*command, str(SCRIPT), *names],
        env={**inherited, "PYTHONPATH": ":".join(paths), "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,  # gloo sometimes ends a finished process with an abort
    )


def results(launcher: str, *names: str, **environment: str) -> dict[str, list[dict[str, Any]]]:
    """What each rank has seen of each fit."""
    done = launch(launcher, *names, **environment)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, done.stderr[-3000:]
    found: dict[str, list[dict[str, Any]]] = json.loads(lines[0][len("RESULT ") :])
    return found
