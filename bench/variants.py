"""Variants of a configuration trained for several seeds, each run a process of its own so that runs cannot touch each other."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from moebius.observe.json_lines import read_lines


def train_all(config: str, variants: Mapping[str, list[str]], seeds: int, jobs: int) -> dict[str, list[list[dict]]]:
    """The metrics of every run, by variant and seed. variants: flags; jobs: runs at a time, which share the cores."""
    todo = [(name, seed) for seed in range(seeds) for name in variants]
    threads = max(1, (os.cpu_count() or 1) // jobs)
    with tempfile.TemporaryDirectory() as out, ThreadPoolExecutor(jobs) as pool:
        moebius(["data", config, *next(iter(variants.values()))])

        def train(name: str, seed: int) -> list[dict]:
            slug = "".join(letter if letter.isalnum() else "-" for letter in name)[:50] + f"-{seed}"
            own = ["--train.seed", str(seed), "--train.out", out, "--train.name", slug]
            own += ["--train.checkpoint_every", "0", "--train.eval_every", "0", "--observe.tensorboard", "false"]
            moebius(["train", config, *variants[name], *own], threads)
            return read_lines(Path(out) / slug / "metrics.jsonl")

        results: dict[str, list[list[dict]]] = {name: [] for name in variants}
        for (name, seed), metrics in zip(todo, pool.map(lambda job: train(*job), todo), strict=True):
            results[name].append(metrics)
            print(f"{name}, seed {seed}: {metrics[-1]['val_bpb']:.4f} bpb", file=sys.stderr, flush=True)
    return results


def moebius(arguments: list[str], threads: int = 0) -> None:
    """Run a command; leave with its error if it fails."""
    environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    done = subprocess.run(
        [sys.executable, "-m", "moebius", *arguments], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"moebius {' '.join(arguments)}\n{done.stderr}")
