"""What one run and two runs at once cost each other on a CPU, with threads that spin and that sleep.

A thread of OpenMP that has nothing to do spins by default, for milliseconds, which takes the core
away from the other run. `moebius` lets it sleep after a short while (moebius/cli/threads.py).

    python bench/two_runs.py [ROUNDS]

prints how long a step takes in turns, alone and with a second run beside it, relative to a step
alone with threads that spin. Other work on the machine falsifies it.
"""

import os
import statistics
import sys
from concurrent.futures import ThreadPoolExecutor

from moebius.ablate.worker import Worker
from moebius.config import Config
from moebius.config.files import read_config

SECONDS = 2.0  # of each measurement
WAYS: dict[str, dict[str, str]] = {
    "spin": {"GOMP_SPINCOUNT": "300000"},
    **{f"sleep after {count}": {"GOMP_SPINCOUNT": str(count)} for count in (0, 1000, 10_000)},
}


def main(rounds: int) -> None:
    """Measure all ways in turns, and print a line for each."""
    config = read_config("tiny", [])
    pairs = {name: [worker_of(config, way) for _ in range(2)] for name, way in WAYS.items()}
    try:
        workers = [worker for pair in pairs.values() for worker in pair]
        warm = [worker.ask("start")["seconds"] for worker in workers]
        count = max(1, round(SECONDS / min(warm)))
        alone: dict[str, list[float]] = {name: [] for name in pairs}
        beside: dict[str, list[float]] = {name: [] for name in pairs}
        with ThreadPoolExecutor(2) as both:
            for _ in range(rounds):
                for name, pair in pairs.items():
                    alone[name].append(pair[0].ask("run", count=count)["seconds"])
                for name, pair in pairs.items():
                    took = both.map(lambda worker: worker.ask("run", count=count)["seconds"], pair)
                    beside[name].append(statistics.fmean(took))
    finally:
        for pair in pairs.values():
            for worker in pair:
                worker.end()
    for name in pairs:
        one, two = (
            sorted(took / spin for took, spin in zip(times[name], alone["spin"], strict=True))
            for times in (alone, beside)
        )
        print(f"{name:<18}alone {in_words(one)}   two at once {in_words(two)}")
    print(
        f"a step alone, spinning: {[round(took, 3) for took in alone['spin']]} s, {os.getloadavg()}"
    )


def worker_of(config: Config, environment: dict[str, str]) -> Worker:
    """Return a process that trains with these environment variables."""
    os.environ.update(environment)
    return Worker(config)


def in_words(ratios: list[float]) -> str:
    """Return the median, lowest and highest of sorted ratios."""
    return f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
