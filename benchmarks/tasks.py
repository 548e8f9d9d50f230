"""Long benchmarks as small tasks, each written down when it is done, so that runs can go on."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
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

    def has(self, key: Key) -> bool:
        """Return whether there is a result."""
        return key[-1] in self.at(*key[:-1])

    def write(self, key: Key, result: dict[str, Any]) -> None:
        """Add a result and save everything."""
        self.at(*key[:-1])[key[-1]] = result
        self.path.parent.mkdir(exist_ok=True)
        unfinished = self.path.with_suffix(f".{os.getpid()}")
        text = json.dumps(self.record, indent=1, ensure_ascii=False) + "\n"
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(self.path)


def run(
    tasks: Sequence[Key],
    needs: Callable[[Key], Sequence[Key]],
    work: Callable[[Key, dict[str, Any]], dict[str, Any]],
    ledger: Ledger,
    workers: int,
) -> None:
    """Do the tasks that the ledger lacks, in processes of their own, the first ones first.

    Args:
        tasks: keys of the tasks.
        needs: says which other tasks must be done before one.
        work: does a task. It gets its key and what the ledger holds under the key but its last
            two names.
        ledger: receives the results.
        workers: processes, of one thread each.
    """
    waiting = [key for key in tasks if not ledger.has(key)]
    running: dict[Future[dict[str, Any]], Key] = {}
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        workers, mp_context=spawn, initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        while waiting or running:
            ready = [key for key in waiting if all(map(ledger.has, needs(key)))]
            for key in ready[: workers - len(running)]:
                waiting.remove(key)
                running[pool.submit(work, key, ledger.at(*key[:-2]))] = key
            if not running:
                raise ValueError(f"Expected every need to be among `tasks`, but {waiting} wait.")
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                key, result = running.pop(future), future.result()
                ledger.write(key, result)
                numbers = {n: v for n, v in result.items() if isinstance(v, float)}
                print(*key, numbers, flush=True)
