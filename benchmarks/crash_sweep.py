"""Kill a run at many moments, resume it, and compare with the run that nobody killed.

`python -m benchmarks.crash_sweep`: about five minutes. Each run is a process of its own that a real
signal ends; after a few of the kills the resumed run is killed as well. Every line says where the
signal struck, what the checkpoints on disk were worth, how many evaluations were left to the
resumed run, and whether it ended in the same weights and optimizer state, bit for bit.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lightning_slimga import load_pruned
from tests.fits.crash.training_script import PHASES, Net, train

Moment = tuple[str, int]
SHARES = (0.2, 0.35, 0.25, 0.2)
"""How the moments are divided among the phases of the run."""
TIMEOUT = 120.0
_STDERR = 2


def in_process(folder: Path, run: Callable[[], Any]) -> int:
    """Run a function in a forked process, which spares the imports.

    Args:
        folder: gets what the process prints, in `log`.
        run: what the process does.

    Returns:
        Its exit code; the negative number of the signal that ended it.
    """
    child = os.fork()
    if child == 0:
        log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, _STDERR)
        code = 1
        try:
            run()
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise TimeoutError(f"the run in {folder} did not end within {TIMEOUT} s")


def moments(calls: dict[str, int], count: int) -> list[Moment]:
    """`count` moments, spread evenly over each phase."""
    chosen = []
    for phase, share in zip(PHASES, SHARES, strict=True):
        number = max(1, round(share * count))
        chosen += [(phase, int((i + 0.5) / number * calls[phase]) + 1) for i in range(number)]
    return chosen


def second(moment: Moment, calls: dict[str, int]) -> Moment:
    """Where the resumed run is killed: later in the same phase, or in the next one."""
    phase, call = moment
    if phase == "search":
        return "surgery", calls["surgery"] // 2
    if phase == "sparse training":
        return "search", calls["search"] // 2
    return phase, max(1, call // 4)


def damaged(folder: Path) -> list[str]:
    """Checkpoints in a folder that cannot be loaded into the full-size class."""
    bad = []
    for path in folder.glob("*.ckpt"):
        try:
            load_pruned(Net, path)
        except Exception as error:  # whatever is wrong with it
            bad.append(f"{path.name}: {error}")
    return bad


def same(one: Any, other: Any) -> bool:
    """Whether nested data is equal, tensors bit for bit."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


class Sweep:
    """Runs in a folder, all compared with an undisturbed one.

    Args:
        folder: for the runs.
        number: the signal.
    """

    def __init__(self, folder: Path, number: int) -> None:
        self.folder, self.number = folder, number
        calm = self.new_folder("undisturbed")
        if in_process(calm, lambda: train(calm)) != 0:
            raise RuntimeError((calm / "log").read_text()[-2000:])
        self.expected = torch.load(calm / "final.pt", weights_only=True)
        seen = json.loads((calm / "seen.json").read_text())
        self.calls: dict[str, int] = seen["calls"]
        self.evaluations: int = seen["evaluations"]

    def new_folder(self, name: str) -> Path:
        """Make a folder for one run."""
        path = self.folder / name
        path.mkdir(parents=True)
        return path

    def strike(self, index: int, *kills: Moment) -> dict[str, Any]:
        """Run, end each but the last run at its moment, and compare what came out.

        Returns:
            Plain data for one line of the table.
        """
        run = self.new_folder(f"run{index}")
        codes, bad = [], []
        for kill in kills:
            codes.append(in_process(run, lambda kill=kill: train(run, kill, self.number)))
            bad += damaged(run)
        codes.append(in_process(run, lambda: train(run)))
        final = run / "final.pt"
        equal = final.exists() and same(self.expected, torch.load(final, weights_only=True))
        seen = json.loads((run / "seen.json").read_text())
        return {
            "kills": [f"{phase}:{call}" for phase, call in kills],
            "codes": codes,
            "damaged": bad,
            "left": seen["evaluations"],
            "equal": equal,
            "folder": str(run),
        }


def main() -> None:
    """Sweep, print the table, and fail if any line is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=44, help="moments of the first kill")
    parser.add_argument("--second", type=int, default=4, help="kill every n-th run twice")
    parser.add_argument("--signal", default="KILL", help="KILL, TERM or INT")
    parser.add_argument("--json", type=Path, help="write the lines here as well")
    parser.add_argument("--folder", type=Path, help="keep the runs here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="crash_sweep"))
    sweep = Sweep(folder, getattr(signal, f"SIG{arguments.signal}"))
    print(f"undisturbed: {sweep.evaluations} evaluations, calls {sweep.calls}")
    print(f"{'signal at':<26}{'and again at':<26}{'exit codes':<16}{'damaged':>8}"
          f"{'evaluations':>13}{'equal':>7}")  # fmt: skip
    lines = []
    for index, moment in enumerate(moments(sweep.calls, arguments.points)):
        twice = (index + 1) % arguments.second == 0
        kills = (moment, second(moment, sweep.calls)) if twice else (moment,)
        line = sweep.strike(index, *kills)
        lines.append(line)
        first, again = [*line["kills"], "–"][:2]
        print(f"{first:<26}{again:<26}{line['codes']!s:<16}{len(line['damaged']):>8}"
              f"{line['left']:>13}{'yes' if line['equal'] else 'NO':>7}", flush=True)  # fmt: skip
    good = sum(line["equal"] and not line["damaged"] for line in lines)
    print(f"{good} of {len(lines)} runs ended like the undisturbed one")
    if arguments.json:
        arguments.json.write_text(json.dumps(lines))
    sys.exit(good != len(lines))


if __name__ == "__main__":
    main()
