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
LAUNCHERS = ("script", "torchrun", "nodes")


def launch(
    launcher: str, *names: str, timeout: float = 240, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the fits `names` in two processes.

    Args:
        launcher: "script" starts the script once, and Lightning starts the second process;
            "torchrun" starts both; "nodes" starts torchrun twice, for one process each.
        names: keys of `fits.FITS`.
        timeout: seconds after which the test fails.
        environment: variables for the processes.
    """
    commands = [[sys.executable]]
    if launcher != "script":
        commands = [[*commands[0], *line] for line in _torchrun(2 if launcher == "nodes" else 1)]
    inherited = {k: os.environ[k] for k in ("PATH", "HOME", "TMPDIR") if k in os.environ}
    paths = [str(SCRIPT.parents[2]), *filter(None, sys.path)]
    environment = {"NODES": str(len(commands)), "OMP_NUM_THREADS": "1", **environment}
    started = [
        subprocess.Popen(
            [*command, str(SCRIPT), *names],
            env={**inherited, "PYTHONPATH": ":".join(paths), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for command in commands
    ]
    try:
        printed = [one.communicate(timeout=timeout) for one in started]
    finally:
        for one in started:
            one.kill()
    # Gloo sometimes ends a finished process with an abort, so codes are the caller's affair.
    output, errors = ("".join(texts) for texts in zip(*printed, strict=True))
    return subprocess.CompletedProcess(commands, started[0].returncode, output, errors)


def _torchrun(nodes: int) -> list[list[str]]:
    """One command for each node, two processes in all."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = [f"--nnodes={nodes}", f"--nproc_per_node={2 // nodes}", f"--master_port={port}"]
    torchrun = ["-m", "torch.distributed.run", "--master_addr=127.0.0.1", *common]
    return [[*torchrun, f"--node_rank={node}"] for node in range(nodes)]


def results(launcher: str, *names: str, **environment: str) -> dict[str, list[dict[str, Any]]]:
    """What each rank has seen of each fit."""
    done = launch(launcher, *names, **environment)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, done.stderr[-3000:]
    found: dict[str, list[dict[str, Any]]] = json.loads(lines[0][len("RESULT ") :])
    return found
