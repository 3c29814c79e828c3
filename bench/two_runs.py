"""What two runs at once cost each other on a CPU, and what helps.

    python bench/two_runs.py [ROUNDS]       a minute or two, on a machine with nothing else to do

A thread of OpenMP that has nothing to do spins by default, for milliseconds, which takes a core
away from the other run. With GOMP_SPINCOUNT it sleeps sooner, which makes a run that is alone
slower. Or each run gets as many threads as there are cores for it (`train.threads`). The script
prints how long a step takes, alone and beside a second run, relative to a step alone by default.
Everything is measured in turns. Other work on the machine falsifies it, so the script looks for
some first and does not begin beside it.
"""

import os
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from moebius.ablate.worker import Worker
from moebius.config.files import read_config
from moebius.hardware.processor import NOTICEABLE, Watch, cores

DEFAULT = "by default"
SPINS = "GOMP_SPINCOUNT"
VARIANTS = {
    DEFAULT: ("300000", ""),
    "sleeping after 30,000 spins": ("30000", ""),
    "sleeping after 1,000 spins": ("1000", ""),
    "one thread each": ("300000", "--train.threads=1"),
}
"""The number of spins, and a flag. Without a number, a worker would inherit another's."""
SECONDS = 0.7
"""Approximate seconds of each measurement of a run that is alone."""
FLAGS = ("--train.batch_size=4", "--train.seq_len=128", "--train.device=cpu")
"""Changes to the preset tiny."""


def main(rounds: int) -> None:
    """Measure all variants in turns, and print a line for each."""
    pairs = {name: [_worker(*variant), _worker(*variant)] for name, variant in VARIANTS.items()}
    try:
        with ThreadPoolExecutor(2) as starting:
            warm = list(
                starting.map(_started, [worker for pair in pairs.values() for worker in pair])
            )
        count = max(1, round(SECONDS / min(warm)))
        alone: dict[str, list[float]] = {name: [] for name in pairs}
        beside: dict[str, list[float]] = {name: [] for name in pairs}
        with ThreadPoolExecutor(2) as both:
            for _ in range(rounds):
                for name, pair in pairs.items():
                    alone[name].append(_seconds(pair[0], count))
                for name, pair in pairs.items():
                    took = both.map(_seconds, pair, [count, count])
                    beside[name].append(statistics.fmean(took))
    finally:
        for pair in pairs.values():
            for worker in pair:
                worker.end()
    step = statistics.median(alone[DEFAULT])
    print(f"a step alone by default: {step * 1e3:.1f} ms, in rounds of {count} steps")
    for name in pairs:
        print(
            f"{name:<27}: alone {_ratios(alone[name], alone[DEFAULT])}, "
            f"beside another {_ratios(beside[name], alone[DEFAULT])}"
        )


def _worker(spins: str, flag: str) -> Worker:
    """Return a process whose idle threads spin that often before they sleep."""
    os.environ[SPINS] = spins
    return Worker(read_config("tiny", [*FLAGS, *filter(None, [flag])]))


def _started(worker: Worker) -> float:
    return worker.ask("start")["seconds"]


def _seconds(worker: Worker, count: int) -> float:
    return worker.ask("run", count=count)["seconds"]


def _ratios(times: list[float], reference: list[float]) -> str:
    """Return the median, lowest and highest ratio of the rounds."""
    ratios = sorted(took / other for took, other in zip(times, reference, strict=True))
    return f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"


if __name__ == "__main__":
    watch = Watch()
    time.sleep(SECONDS)
    if (others := watch.usage().others) > NOTICEABLE * cores():
        sys.exit(f"others use {others:.1f} of {cores()} cores; wait until they have ended")
    watch = Watch()
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
    usage = watch.usage()
    print(f"{sum(usage[:2]):.1f} of {usage.cores} cores were busy on average")
