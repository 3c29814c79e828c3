"""What two runs at once cost each other on a CPU, with idle threads that spin and that sleep.

    python bench/two_runs.py [ROUNDS [SPINS ...]]

A thread of OpenMP that has nothing to do spins by default, for milliseconds, which takes a core
away from the other run. With GOMP_SPINCOUNT it sleeps sooner, which makes a run that is alone
slower. The script prints how long a step takes, alone and beside a second run, relative to a step
alone with threads that spin as often as by default. Everything is measured in turns, and other
work on the machine falsifies it. SPINS are the numbers to compare with the default, by default
1000.
"""

import os
import statistics
import sys
from concurrent.futures import ThreadPoolExecutor

from moebius.ablate.worker import Worker
from moebius.config.files import read_config
from moebius.hardware.processor import Watch

DEFAULT = "300000"
SPINS = "1000"
SECONDS = 1.5
"""Approximate seconds of each measurement."""
FLAGS = ("--train.batch_size=4", "--train.seq_len=128")
"""Changes to the preset tiny."""


def main(rounds: int, *spins: str) -> None:
    """Measure all numbers of spins in turns, and print a line for each."""
    pairs = {number: [_worker(number), _worker(number)] for number in (DEFAULT, *spins)}
    try:
        warm = [worker.ask("start")["seconds"] for pair in pairs.values() for worker in pair]
        count = max(1, round(SECONDS / min(warm)))
        alone: dict[str, list[float]] = {number: [] for number in pairs}
        beside: dict[str, list[float]] = {number: [] for number in pairs}
        with ThreadPoolExecutor(2) as both:
            for _ in range(rounds):
                for number, pair in pairs.items():
                    alone[number].append(_seconds(pair[0], count))
                for number, pair in pairs.items():
                    took = both.map(_seconds, pair, [count, count])
                    beside[number].append(statistics.fmean(took))
    finally:
        for pair in pairs.values():
            for worker in pair:
                worker.end()
    step = statistics.median(alone[DEFAULT])
    print(f"a step alone with {DEFAULT} spins: {step * 1e3:.1f} ms, in rounds of {count} steps")
    for number in pairs:
        print(
            f"{number:>7} spins: alone {_ratios(alone[number], alone[DEFAULT])}, "
            f"beside another {_ratios(beside[number], alone[DEFAULT])}"
        )


def _worker(spins: str) -> Worker:
    """Return a process whose idle threads spin that often before they sleep."""
    os.environ["GOMP_SPINCOUNT"] = spins
    return Worker(read_config("tiny", list(FLAGS)))


def _seconds(worker: Worker, count: int) -> float:
    return worker.ask("run", count=count)["seconds"]


def _ratios(times: list[float], reference: list[float]) -> str:
    """Return the median, lowest and highest ratio of the rounds."""
    ratios = sorted(took / other for took, other in zip(times, reference, strict=True))
    return f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"


if __name__ == "__main__":
    watch = Watch()
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7, *(sys.argv[2:] or [SPINS]))
    usage = watch.usage()
    print(f"{sum(usage[:2]):.1f} of {usage.cores} cores were busy on average")
