"""Random networks for as long as you like; prints every counter-example with its seed.

``python -m benchmarks.soak``: 10,000 networks, about 6 minutes
``python -m benchmarks.soak --first 5000 --count 100``: some of them
``python -m benchmarks.soak --first 4711 --count 1``: look at one network
``python -m benchmarks.soak --device cuda``: on a GPU

Those with an odd seed are analysed as large networks are, where a second pass does not compute
again what the first one has computed.
"""

from __future__ import annotations

import argparse
import time
import traceback
import warnings

import torch

from tests.networks.random_networks import Report, build, check
from tests.networks.steps import SeededChoices


def main() -> None:
    """Build and check networks one after the other; exit code 1 after a counter-example."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--count", type=int, default=10_000, help="number of networks")
    parser.add_argument("--device", default="cpu", help="where the networks are")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    reports: list[Report] = []
    failures, started = 0, time.perf_counter()
    for seed in range(arguments.first, arguments.first + arguments.count):
        sample = build(SeededChoices(seed)).on(arguments.device)
        if arguments.count == 1:
            print(sample)
        try:
            report = check(sample, seed)
        except Exception:  # whatever it is, it is a counter-example
            failures += 1
            print(f"seed {seed}\n{sample}\n{traceback.format_exc(limit=-3)}", flush=True)
            continue
        if report is not None:
            reports.append(report)
        if seed % 500 == 499:
            print(_line(reports, failures, time.perf_counter() - started), flush=True)
    print(_line(reports, failures, time.perf_counter() - started))
    raise SystemExit(1 if failures else 0)


def _line(reports: list[Report], failures: int, seconds: float) -> str:
    count = max(len(reports), 1)
    removable = sum(report.removable for report in reports) / count
    layers = sum(report.layers for report in reports) / count
    return (
        f"{len(reports)} networks exact, {failures} counter-examples, {removable:.2f} of the"
        f" parameters and {layers:.1f} layers removable on average, {seconds:.0f} s"
    )


if __name__ == "__main__":
    main()
