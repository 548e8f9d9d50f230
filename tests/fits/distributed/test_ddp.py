from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from torch.utils.data import DistributedSampler

from tests.fits.distributed.fits import GLOBAL_BATCH, fit
from tests.fits.distributed.launching import LAUNCHERS, launch, results
from tests.fits.distributed.networks import NUM_IMAGES
from tests.fits.small_fit import data

NAMES = {
    "script": (
        "norm",
        "frozen",
        "synchronized",
        "clocks",
        "timer",
        "raced",
        "rounds",
        "front",
        "disagreeing",
    ),
    "torchrun": ("norm",),
    "nodes": ("norm",),
}
BATCH = GLOBAL_BATCH // 2


Ranks = Callable[[str, str], list[dict[str, Any]]]


@pytest.fixture(scope="session")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    """What both ranks have seen of a fit; each launcher runs once, for all test processes."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent

    def seen(launcher: str, name: str) -> list[dict[str, Any]]:
        path: Path = folder / f"{launcher}.json"
        with FileLock(f"{path}.lock"):
            if not path.exists():
                path.write_text(json.dumps(results(launcher, *NAMES[launcher])))
        found: list[dict[str, Any]] = json.loads(path.read_text())[name]
        return found

    return seen


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_ranks_stay_equal(launcher: str, ranks: Ranks) -> None:
    first, second = ranks(launcher, "norm")
    for what in ("plan", "surgery", "history", "steps", "end", "weights"):
        assert first[what] == second[what], what
    steps = NUM_IMAGES // GLOBAL_BATCH * 2
    assert len(set(first["steps"])) == steps  # they were equal, and they moved


@pytest.mark.parametrize("name", ["rounds", "front"])
def test_ranks_stay_equal_through_rounds_and_with_a_front(name: str, ranks: Ranks) -> None:
    first, second = ranks("script", name)
    for what in ("plan", "surgery", "history", "front", "steps", "end", "weights"):
        assert first[what] == second[what], what
    assert (first["front"] is not None) == (name == "front")


def test_ranks_stop_the_same_candidates(ranks: Ranks) -> None:
    """Each on its share of the batches, under a limit on latency that rank 0 has measured."""
    first, second = ranks("script", "raced")
    for what in ("plan", "history", "weights"):
        assert first[what] == second[what], what
    assert min(entry["work"] for entry in first["history"]) < 1


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_statistics_are_the_mean_over_the_ranks(launcher: str, ranks: Ranks) -> None:
    seen = ranks(launcher, "norm")[0]
    weight, bias = (torch.tensor(value) for value in seen["conv"])
    means, variances = [], []
    for rank in range(2):  # Lightning shards with its default seed, and this was epoch 1
        sampler = DistributedSampler(data(NUM_IMAGES, 0), num_replicas=2, rank=rank, seed=0)
        sampler.set_epoch(1)
        pixels = data(NUM_IMAGES, 0).tensors[0][list(sampler)]
        for batch in pixels.split(BATCH)[:2]:
            channels = torch.nn.functional.conv2d(batch, weight, bias).transpose(0, 1).flatten(1)
            means.append(channels.mean(1))
            variances.append(channels.var(1))
    mean, variance = (torch.tensor(value) for value in seen["statistics"])
    torch.testing.assert_close(mean, torch.stack(means).mean(0))
    torch.testing.assert_close(variance, torch.stack(variances).mean(0))


@pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training")
@pytest.mark.filterwarnings("ignore:.*has not moved toward zero")
@pytest.mark.parametrize("name", ["frozen", "synchronized"])
def test_two_processes_equal_one_with_the_same_global_batch(name: str, ranks: Ranks) -> None:
    """With statistics that do not depend on how a batch is divided, and a metric that is a mean."""
    (two, other), one = ranks("script", name), fit(name, processes=1)
    assert two["norm"] == ("BatchNorm2d" if name == "frozen" else "SyncBatchNorm")
    assert two["weights"] == other["weights"]
    assert one["plan"] == two["plan"]
    assert one["surgery"]["shapes"] == two["surgery"]["shapes"]
    assert len(one["history"]) == len(two["history"]) == 3
    for a, b in zip(one["history"], two["history"], strict=True):
        assert a["widths"] == b["widths"]
        assert a["evaluations"] == b["evaluations"]
        assert [a["best"], a["mean"], a["std"]] == pytest.approx(
            [b["best"], b["mean"], b["std"]], abs=1e-6
        )
    for name, value in one["weights"].items():
        torch.testing.assert_close(torch.tensor(value), torch.tensor(two["weights"][name]))


def test_time_is_up_on_all_ranks_or_none(ranks: Ranks) -> None:
    first, second = ranks("script", "clocks")
    assert first["history"] == second["history"]
    assert first["history"][-1]["evaluations"] == 6
    assert first["plan"] == second["plan"]


def test_a_timer_ends_the_fit_on_all_ranks(ranks: Ranks) -> None:
    first, second = ranks("script", "timer")
    assert first["judged"] == second["judged"] == 6
    assert "plan" not in first
    assert first["weights"] == second["weights"]
    assert len(first["weights"]["body.0.bias"]) == 16


def test_ranks_that_disagree_are_stopped_before_surgery(ranks: Ranks) -> None:
    first, second = ranks("script", "disagreeing")
    assert first == second
    assert "The processes do not agree on what to cut (rank 0: " in first["error"]
    assert "so nothing was cut" in first["error"]


def assert_ended(done: Any, ended: float) -> None:
    """Both processes have ended within a minute after what happened to one of them."""
    struck = [line for line in done.stdout.splitlines() if line.startswith("STRUCK ")]
    assert len(struck) == 1, done.stderr[-3000:]
    assert ended - float(struck[0].split()[1]) < 60
    assert "RESULT" not in done.stdout


@pytest.mark.parametrize(("launcher", "sync"), [("script", True), ("torchrun", False)])
def test_a_failing_rank_ends_all(launcher: str, sync: bool) -> None:
    done = launch(launcher, "failing", FAILING_RANK="1", **({"SYNC": "1"} if sync else {}))
    assert_ended(done, time.time())
    assert done.returncode != 0
    assert "ValueError: a mistake of the user's" in done.stderr


def test_a_signal_to_one_rank_ends_all() -> None:
    assert_ended(launch("script", "failing", FAILING_RANK="0", SIGNAL="SIGTERM"), time.time())


def test_a_killed_run_is_resumed_to_the_same_end(tmp_path: Path, ranks: Ranks) -> None:
    checkpoints = {"CHECKPOINTS": str(tmp_path)}
    done = launch("script", "failing", FAILING_RANK="0", SIGNAL="SIGKILL", **checkpoints)
    assert_ended(done, time.time())
    first, second = results("script", "norm", **checkpoints)["norm"]
    undisturbed = ranks("script", "norm")[0]
    for what in ("plan", "history", "weights", "end"):
        assert first[what] == second[what] == undisturbed[what], what
