"""Every model of torchvision: is the surgery exact, how much can go, what does it cost?

    python -m benchmarks.coverage                              # everything; writes docs/coverage.md
    python -m benchmarks.coverage --only resnet50 vit_b_16     # a few, to the terminal
    python -m benchmarks.coverage --peer                       # with Torch-Pruning beside

Each model runs in a process of its own, with a limit on time and memory. Half of the removable
channels go at random; then the shrunk network must return what the masked one returns, must
cost what the formula says by torch's own counter, and must train for a step.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FAMILIES = ("classification", "segmentation", "video", "detection")
LARGE = 100_000_000  # parameters from which single precision is used


def main() -> None:
    """Run the models, print a line for each, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--families", nargs="+", default=FAMILIES)
    parser.add_argument("--only", nargs="+", help="names of models")
    parser.add_argument("--peer", action="store_true", help="run Torch-Pruning beside")
    parser.add_argument("--seconds", type=int, default=600, help="time limit of each process")
    parser.add_argument("--gigabytes", type=int, default=16, help="memory limit of each process")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "coverage.md")
    parser.add_argument("--worker", nargs=3, metavar=("TOOL", "FAMILY", "NAME"))
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(work(*arguments.worker)))
        return
    rows = []
    for family in arguments.families:
        for name in _chosen(family, arguments.only):
            row = {"family": family, "name": name}
            row |= _in_a_process("slimga", family, name, arguments)
            if arguments.peer:
                row["peer"] = _in_a_process("peer", family, name, arguments)
            rows.append(row)
            print(_line(row), flush=True)
    if not arguments.only:
        arguments.output.parent.mkdir(exist_ok=True)
        arguments.output.write_text(_document(rows, arguments))


def _chosen(family: str, only: list[str] | None) -> list[str]:
    from benchmarks import zoo

    if family == "timm":
        return only or []
    return [name for name in zoo.names(family) if not only or name in only]


def _in_a_process(
    tool: str, family: str, name: str, arguments: argparse.Namespace
) -> dict[str, Any]:
    limit = arguments.gigabytes << 30
    command = [sys.executable, "-m", "benchmarks.coverage", "--worker", tool, family, name]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = time.perf_counter()
    try:
        done = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            timeout=arguments.seconds,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)),
        )
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {arguments.seconds} s"}
    lines = done.stdout.strip().splitlines()
    if done.returncode == 0 and lines:
        return {**json.loads(lines[-1]), "wall": time.perf_counter() - started}
    last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return {"error": last[:300] or f"exit code {done.returncode}"}


def work(tool: str, family: str, name: str) -> dict[str, Any]:
    """One model, in this process."""
    import warnings

    import torch

    from benchmarks import coverage_work, zoo

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    entry = zoo.make(family, name)
    if tool == "peer":
        return coverage_work.peer(entry)
    double = sum(p.numel() for p in entry.model.parameters()) <= LARGE
    return coverage_work.slimga(entry, double=double)


def _line(row: dict[str, Any]) -> str:
    if "error" in row:
        return f"{row['name']:34s} FAILED {row['error']}"
    peer = row.get("peer")
    beside = "" if peer is None else f" | peer {peer.get('error') or _peer_cell(peer)}"
    return (
        f"{row['name']:34s} error {row['difference']:.0e} macs {'=' if row['macs'] else 'DIFFER'}"
        f" left {row['left']:.2f} in reach {row['reach']:.2f}"
        f" analysis {row['analysis']:.2f} s apply {row['apply']:.2f} s"
        f" +{row['memory']:.2f} GB layers {row['layers']}{beside}"
    )


def _peer_cell(peer: dict[str, Any]) -> str:
    return f"left {peer['left']:.2f} in {peer['seconds']:.2f} s +{peer['memory']:.2f} GB"


def _document(rows: list[dict[str, Any]], arguments: argparse.Namespace) -> str:
    exact = [r for r in rows if "error" not in r and r["exact"] and r["macs"]]
    head = [
        "# Coverage of the model zoos",
        "",
        "Written by `python -m benchmarks.coverage`" + (" --peer" if arguments.peer else "") + ".",
        "",
        f"{len(exact)} of {len(rows)} models: half of the removable channels removed at random,"
        " outputs of the shrunk network equal to those of the masked one (float64 to 1e-9"
        " relative, float32 to 1e-5 above 100 M parameters), MACs as torch counts them, one"
        " training step after the surgery. One thread of a CPU.",
        "",
        "*left*: share of the parameters left at that mask. *in reach*: share of the parameters"
        " that the smallest mask removes. *analysis*, *apply*: seconds. *memory*: peak beyond the"
        " model during the analysis, in GB.",
        "",
    ]
    titles = ["family", "model", "error", "MACs", "left", "in reach", "analysis", "apply", "memory"]
    titles += ["Torch-Pruning"] if arguments.peer else []
    table = [f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]
    return "\n".join([*head, *table, *(_table_row(row) for row in rows), ""])


def _table_row(row: dict[str, Any]) -> str:
    cells = [row["family"], f"`{row['name']}`"]
    if "error" in row:
        cells += [row["error"].replace("|", "/"), *[""] * 6]
    else:
        cells += [f"{row['difference']:.0e}", "=" if row["macs"] else "differ"]
        cells += [f"{row[key]:.2f}" for key in ("left", "reach", "analysis", "apply", "memory")]
    if "peer" in row:
        peer = row["peer"]
        cells.append(peer["error"].replace("|", "/") if "error" in peer else _peer_cell(peer))
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
