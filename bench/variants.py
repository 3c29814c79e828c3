"""Train variants of a configuration with several seeds, each run in a process of its own.

Runs in processes of their own cannot affect each other.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from flags import layered

from moebius.observe.json_lines import METRICS
from moebius.observe.line_file import read_lines

WITHOUT_EXTRAS = [
    *("--train.checkpoint_every", "0"),
    *("--train.eval_every", "0"),
    *("--observe.tensorboard", "false"),
]


def train_all(
    config: str, variants: Mapping[str, list[str]], seeds: int, jobs: int
) -> dict[str, list[list[dict]]]:
    """Return the lines of metrics.jsonl of every run, by variant and seed.

    config: a preset or a TOML file. variants: flags by name. seeds: number of runs of each
    variant. jobs: number of runs at the same time, which share the processor's cores.
    """
    runs = [(name, seed) for seed in range(seeds) for name in variants]
    threads = max(1, (os.cpu_count() or 1) // jobs)
    with tempfile.TemporaryDirectory() as out, ThreadPoolExecutor(jobs) as pool:
        moebius(["data", config, *next(iter(variants.values()))])

        def train(name: str, seed: int) -> list[dict]:
            letters = "".join(letter if letter.isalnum() else "-" for letter in name)
            run = f"{letters[:50]}-{seed}"
            own = ["--train.seed", str(seed), "--train.out", out, "--train.name", run]
            flags = layered(variants[name], own, WITHOUT_EXTRAS)
            moebius(["train", config, *flags], threads)
            return read_lines(Path(out) / run / METRICS)

        results: dict[str, list[list[dict]]] = {name: [] for name in variants}
        metrics_of_runs = pool.map(lambda run: train(*run), runs)
        for (name, seed), metrics in zip(runs, metrics_of_runs, strict=True):
            results[name].append(metrics)
            bits = metrics[-1]["val_bpb"]
            print(f"{name}, seed {seed}: {bits:.4f} bpb", file=sys.stderr, flush=True)
    return results


def moebius(arguments: list[str], threads: int = 0) -> None:
    """Run a command of Moebius, and exit with its error if it fails.

    threads: number of threads that it uses; 0 leaves that to it.
    """
    environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    done = subprocess.run(
        [sys.executable, "-m", "moebius", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"moebius {' '.join(arguments)}\n{done.stderr}")
