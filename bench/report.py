"""Write the report of a long run, and print its size, the time that it took, and the memory.

    python bench/report.py                    100,000 steps, logged every 10th, 24 x 64 experts
    python bench/report.py --experts 256      more experts
    python bench/report.py --keep FOLDER      keep the run and its report there

The run is made up, by the sinks that write a real run's files: losses that fall, loads that drift,
experts that die, and alarms. A process of its own writes the report, so that the memory is that of
`moebius report` from start to end.
"""

import argparse
import math
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from moebius.config import Config
from moebius.config.files import override, to_toml
from moebius.config.flags import parse_flags
from moebius.moe.load import dead_experts, max_violation, variation
from moebius.observe.alarms import Alarms
from moebius.observe.expert_counts import ExpertCounts
from moebius.observe.json_lines import JsonLines
from moebius.observe.metrics import LayerMetrics, StepMetrics
from moebius.observe.sink import Sinks
from moebius.train.log import AnsweredAlarm

TOKENS = 2**19
"""Tokens of a step."""


def layer_metrics(
    loads_E: np.ndarray, tokens: int, generator: np.random.Generator
) -> LayerMetrics:
    """Return the figures of a layer whose experts have these shares on average."""
    counts = generator.poisson(loads_E * tokens).tolist()
    return LayerMetrics(
        tokens_per_expert=counts,
        cv=variation(counts),
        max_violation=max_violation(counts),
        dead_experts=dead_experts(counts),
        experts_per_token=1.0,
        routing_entropy=0.5 + 0.4 * generator.random(),
        mean_gate=0.5,
        router_grad_norm=generator.random(),
        balance_loss=1.0,
        z_loss=1.0,
    )


def step_metrics(
    step: int, loads_LE: np.ndarray, generator: np.random.Generator, steps: int
) -> StepMetrics:
    """Return the figures of a step."""
    progress = step / steps
    loss = 2.0 + 8.0 * math.exp(-12 * progress) + 0.05 * generator.standard_normal()
    return StepMetrics(
        step=step,
        tokens=step * TOKENS,
        loss=loss,
        lr=1e-3 * (1 - progress),
        grad_norm=1 + 0.2 * generator.random(),
        balance_loss=1.0,
        z_loss=1.0,
        layers=[layer_metrics(loads_E, TOKENS, generator) for loads_E in loads_LE],
        tokens_per_second=4e5 * (1 + 0.03 * generator.standard_normal()),
        mfu=0.4,
        memory_gb=60.0,
        val_loss=loss + 0.05 if step % 1000 == 0 else None,
        val_bpb=loss / 3 if step % 1000 == 0 else None,
    )


def write_run(folder: Path, steps: int, every: int, layers: int, experts: int) -> None:
    """Write the files of a made-up run."""
    generator = np.random.default_rng(0)
    flags = (
        f"--model.num_layers={layers}",
        f"--model.num_experts={experts}",
        f"--train.steps={steps}",
        f"--train.log_every={every}",
    )
    config = override(Config(), parse_flags(list(flags)))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.toml").write_text(to_toml(config))
    alarms = Alarms(config.observe)
    logits_LE = 0.1 * generator.standard_normal((layers, experts))
    with Sinks([JsonLines(), ExpertCounts()], folder, 0) as sinks:
        for step in range(every, steps + 1, every):
            logits_LE += 0.004 * generator.standard_normal((layers, experts)) - 0.0005 * logits_LE
            loads_LE = np.exp(logits_LE)
            loads_LE[0, : experts // 8] *= step < steps / 2  # some experts of a layer die
            loads_LE /= loads_LE.sum(axis=1, keepdims=True)
            metrics = step_metrics(step, loads_LE, generator, steps)
            sinks.write(metrics)
            for alarm in alarms.look(metrics):
                sinks.event(AnsweredAlarm(alarm, done=""))


def main() -> None:
    """Make the run, write its report, and print what that took."""
    parser = argparse.ArgumentParser(description="Write the report of a long run.")
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--experts", type=int, default=64)
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary) / "run"
        start = time.perf_counter()
        write_run(folder, options.steps, options.every, options.layers, options.experts)
        files = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        print(f"the run: {files / 1e6:.0f} MB, made in {time.perf_counter() - start:.0f} s")
        start = time.perf_counter()
        command = [sys.executable, "-m", "moebius", "report", str(folder)]
        subprocess.run(command, check=True)
        seconds = time.perf_counter() - start
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        print(
            f"the report: {(folder / 'report.html').stat().st_size / 1e6:.1f} MB, {seconds:.1f} s "
            f"({used.ru_utime + used.ru_stime:.1f} s of the processor), "
            f"{used.ru_maxrss / 1e6:.2f} GB of memory"
        )


if __name__ == "__main__":
    main()
