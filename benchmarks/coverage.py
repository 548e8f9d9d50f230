"""Every model of the zoos: is the surgery exact, how much can go, what does it cost?

    python -m benchmarks.coverage --peer           # torchvision beside Torch-Pruning, hours
    python -m benchmarks.coverage --families timm  # one model of each family of timm
    python -m benchmarks.coverage --only resnet50 vit_b_16
    python -m benchmarks.coverage --missing        # go on where a run was ended
    python -m benchmarks.coverage --merge a.json   # take in what other runs have left
    python -m benchmarks.coverage --table          # only write docs/coverage.md anew

Each model runs in a process of its own, with a limit on time and memory; its result is merged at
once into ``results/coverage.json``, from which ``docs/coverage.md`` is made. Half of the removable
channels go at random; then the shrunk network must return what the masked one returns, must
cost what the formula says by torch's own counter, and must train for a step.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import multiprocessing
import os
import resource
import signal
import traceback
import warnings
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

# Before torch is imported, and inherited by the forks: one thread, and memory by the two megabytes
# for both tools, because on some machines fresh pages cost more than what is computed in them.
os.environ |= {"OMP_NUM_THREADS": "1", "THP_MEM_ALLOC_ENABLE": "1"}

from benchmarks import coverage_table, coverage_work, zoo

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of malloc.h
ROOT = Path(__file__).resolve().parents[1]
FAMILIES = ("classification", "segmentation", "video", "detection")


def main() -> None:
    """Run the models, print a line for each, merge the results and write the table."""
    arguments = _arguments()
    for other in arguments.merge:
        for family, models in _known(other).items():
            for name, tools in models.items():
                for tool, result in tools.items():
                    _merge(arguments.results, family, name, tool, result)
    for family in arguments.families if not (arguments.table or arguments.merge) else ():
        for name in _chosen(family, arguments.only):
            known = _known(arguments.results).get(family, {}).get(name, {})
            for tool in arguments.tools:  # beside each other: the machine has good and bad minutes
                if arguments.missing and tool in known:
                    continue
                result = _in_a_process(tool, family, name, arguments)
                _merge(arguments.results, family, name, tool, result)
                print(f"{tool:14s} {name:40s} {coverage_table.line(result)}", flush=True)
    arguments.output.parent.mkdir(exist_ok=True)
    arguments.output.write_text(coverage_table.document(_known(arguments.results)))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--families", nargs="+", default=FAMILIES)
    parser.add_argument("--only", nargs="+", help="names of models")
    parser.add_argument("--peer", action="store_true", help="run Torch-Pruning beside")
    parser.add_argument("--tools", nargs="+", choices=("slimga", "torch_pruning"))
    parser.add_argument("--missing", action="store_true", help="run only what has no result yet")
    parser.add_argument("--merge", nargs="+", type=Path, default=(), help="results of other runs")
    parser.add_argument("--table", action="store_true", help="run nothing, write the table")
    parser.add_argument(
        "--seconds", type=int, default=600, help="limit of CPU time of each process"
    )
    parser.add_argument("--gigabytes", type=int, default=16, help="memory limit of each process")
    results = ROOT / "benchmarks" / "results" / "coverage.json"
    parser.add_argument("--results", type=Path, default=results)
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "coverage.md")
    parser.add_argument("--traceback", action="store_true", help="show where models fail")
    arguments = parser.parse_args()
    if arguments.tools is None:
        arguments.tools = ["slimga", "torch_pruning"] if arguments.peer else ["slimga"]
    return arguments


def _chosen(family: str, only: list[str] | None) -> list[str]:
    return [name for name in zoo.names(family) if not only or name in only]


def _known(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text())) if path.exists() else {}


def _merge(path: Path, family: str, name: str, tool: str, result: dict[str, Any]) -> None:
    known = _known(path)
    known.setdefault(family, {}).setdefault(name, {})[tool] = result
    path.parent.mkdir(exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
    fresh.replace(path)


def _in_a_process(
    tool: str, family: str, name: str, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Run one model in a fork, which does not import everything again."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(sender, tool, family, name, arguments))
    process.start()
    sender.close()
    try:
        result: dict[str, Any] = receiver.recv()
    except EOFError:
        process.join()
        reasons = {
            -signal.SIGXCPU: f"not done after {arguments.seconds} s",
            -signal.SIGKILL: "killed by the system",
        }
        code = process.exitcode or 0
        result = {"error": reasons.get(code, f"ended with code {code}")}
    process.join()
    return result


def _keep_memory() -> None:
    """Let the process keep freed memory, so that of several runs the quickest fetches none anew.

    Otherwise it depends on the sizes of a tool's tensors whether the system takes them back.
    """
    with suppress(OSError, AttributeError):  # no glibc
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def _work(
    sender: Connection, tool: str, family: str, name: str, arguments: argparse.Namespace
) -> None:
    """One model, in this process: the result, or the error in words."""
    import torch

    size, seconds = arguments.gigabytes << 30, arguments.seconds
    resource.setrlimit(resource.RLIMIT_DATA, (size, size))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    _keep_memory()
    try:
        result = coverage_work.WORK[tool](family, name)
    except BaseException as error:  # whatever it is, it goes into the table
        words = (str(error).strip() or "no words").splitlines()[0]
        result = {"error": f"{type(error).__name__}: {words}"[:200]}
        if arguments.traceback:
            traceback.print_exc()
    sender.send(result)


if __name__ == "__main__":
    main()
