"""Long benchmarks as small tasks, each written down when it is done, so that runs can go on."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
Key = tuple[str, ...]


class Ledger:
    """Results of tasks by key, in a JSON file that is complete at every moment.

    Args:
        path: the file; read if it is there.
        header: what decides the results. Those of a file with another header are dropped.
        fresh: drop earlier results in any case.
    """

    def __init__(self, path: Path, header: dict[str, Any], *, fresh: bool = False) -> None:
        self.path = path
        header = json.loads(json.dumps(header))
        self.record: dict[str, Any] = {**header, "torch": torch.__version__, "results": {}}
        if path.exists() and not fresh:
            earlier = json.loads(path.read_text(encoding="utf-8"))
            if header.items() <= earlier.items():
                self.record = earlier

    def at(self, *key: str) -> dict[str, Any]:
        """Return the dictionary under a key, made if it is not there."""
        found: dict[str, Any] = self.record["results"]
        for name in key:
            found = found.setdefault(name, {})
        return found

    def write(self, key: Key, result: dict[str, Any]) -> None:
        """Add a result and save everything."""
        self.at(*key[:-1])[key[-1]] = result
        self.path.parent.mkdir(exist_ok=True)
        unfinished = self.path.with_suffix(f".{os.getpid()}")
        text = json.dumps(self.record, indent=1, ensure_ascii=False) + "\n"
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(self.path)


def run(
    stages: Sequence[Sequence[Key]],
    work: Callable[[Key, dict[str, Any]], dict[str, Any]],
    ledger: Ledger,
    workers: int,
) -> None:
    """Do the tasks that the ledger lacks, in processes of their own.

    Args:
        stages: keys of the tasks; those of a stage need only what earlier stages have made.
        work: does a task. It gets its key and what the ledger holds under the key but its last
            two names.
        ledger: receives the results.
        workers: processes, of one thread each.
    """
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        workers, mp_context=spawn, initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        for stage in stages:
            missing = [key for key in stage if key[-1] not in ledger.at(*key[:-1])]
            futures = {pool.submit(work, key, ledger.at(*key[:-2])): key for key in missing}
            for future in as_completed(futures):
                result = future.result()
                ledger.write(futures[future], result)
                numbers = {n: v for n, v in result.items() if isinstance(v, float)}
                print(*futures[future], numbers, flush=True)
