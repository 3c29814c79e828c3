"""Measure what a run's sinks cost per logged step.

    python bench/sinks.py       24 layers of 64 and of 256 experts; two minutes on two cores

Columns are milliseconds of a processor core, means over the logged steps. "In the thread" is what
the training waits for. "In all threads" adds the sinks that work apart, which share the
interpreter with the training: while they compute, it may have to wait, too. The process of W&B
shares nothing. Shares are those of `--log-every` steps of `--step-ms` each.
"""

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from made_up_step import made_up_step
from markdown_tables import table

from moebius.config import ObserveConfig
from moebius.observe.metrics import StepMetrics
from moebius.observe.registry import sinks_for
from moebius.observe.sink import Sinks
from moebius.parallel.process import Process

LAYERS = 24
FIRST = 1_000
"""Steps are logged as if the run were here, where TensorBoard and W&B still get the figures of all
layers at each logged step, and a picture at every other one. Later both become rarer."""
CONFIGS = {
    "the run's own files": ObserveConfig(tensorboard=False),
    "and TensorBoard": ObserveConfig(),
    "and W&B, offline": ObserveConfig(wandb="offline"),
}


def main() -> None:
    """Print a table of the costs."""
    parser = argparse.ArgumentParser(
        description="Measure what a run's sinks cost per logged step."
    )
    parser.add_argument("--experts", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--steps", type=int, default=60, help="number of logged steps")
    parser.add_argument("--step-ms", type=float, default=200.0, help="time of a GPU step")
    parser.add_argument("--log-every", type=int, default=10)
    options = parser.parse_args()
    between = options.step_ms * options.log_every
    rows: list[list[str]] = []
    for num_experts in options.experts:
        steps = made_up(num_experts, options.steps, options.log_every)
        for name, config in CONFIGS.items():
            thread, process = measured(config, steps)
            costs = [f"{cost:.2f}" for cost in (thread, process)]
            shares = [f"{cost / between:.2%}" for cost in (thread, process)]
            rows.append([f"{LAYERS} x {num_experts}", name, *costs, *shares])
    heads = [
        "experts",
        "sinks",
        "in the thread, ms",
        "in all threads, ms",
        "share",
        "share of all",
    ]
    print("\n".join(table(heads, rows)))


def measured(config: ObserveConfig, steps: list[StepMetrics]) -> tuple[float, float]:
    """Return the milliseconds per logged step, of this thread and of all threads."""
    in_thread, in_all = [], []
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        (run / "config.toml").write_text("")
        with Sinks(sinks_for(config, Process()), run, FIRST) as sinks:
            sinks.write(replace(steps[0], step=FIRST))
            time.sleep(15 if config.wandb != "off" else 3)  # until the libraries are imported
            for metrics in steps:
                thread, process = time.thread_time(), time.process_time()
                sinks.write(metrics)
                in_thread.append(1e3 * (time.thread_time() - thread))
                time.sleep(0.1)  # as the training goes on, the other threads do their work
                in_all.append(1e3 * (time.process_time() - process))
    return statistics.fmean(in_thread), statistics.fmean(in_all)


def made_up(num_experts: int, count: int, log_every: int) -> list[StepMetrics]:
    """Return logged steps of a balanced model."""
    noise = np.random.default_rng(0)
    return [
        made_up_step(
            FIRST + log_every * number, noise.poisson(2048, (LAYERS, num_experts)).tolist(), noise
        )
        for number in range(1, count + 1)
    ]


if __name__ == "__main__":
    main()
