"""Measure training on 1, 2, ... GPUs in each layout: tokens per second, efficiency and memory.

    python bench/scaling.py                            on all GPUs of this machine
    python bench/scaling.py standard --sequences 8     a preset, and its sequences on each GPU
    python bench/scaling.py tiny --device cpu --gpus 2 --steps 3

Every GPU has equally many sequences in every row (weak scaling). The efficiency compares a GPU's
tokens per second with those of one GPU alone. `plan` predicts the time and memory of each row
beside what was measured. Tokens are random.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

import torch

from moebius.config import Config
from moebius.config.files import read_config
from moebius.cost.layouts import Layout, planned
from moebius.hardware.backends import backends_for
from moebius.hardware.device import choose_device, wait
from moebius.hardware.devices import device_named
from moebius.hardware.memory import PeakMemory
from moebius.model.transformer import lookahead, seeded
from moebius.parallel.group import joined
from moebius.parallel.layout import check_layout, lay_out, placement_of
from moebius.parallel.process import Process
from moebius.train.state import TrainState
from moebius.train.step import train_step

WARM_UP = 5


def main() -> None:
    """Print a row for each number of GPUs and each layout, or be one of a row's processes."""
    options = _options()
    if "RANK" in os.environ:
        return _measure(options)
    count = options.gpus or max(1, torch.cuda.device_count())
    counts = [n for n in (1, 2, 4, 8, 16) if n <= count]
    print(f"{_device_name(options)}, torch {torch.__version__}, {options.preset}")
    print("gpus  layout               tokens/s  efficiency   step ms  plan ms  memory GB  plan GB")
    alone = 0.0
    for gpus in counts:
        for layout in _layouts(gpus):
            found = _started(gpus, layout)
            if isinstance(found, str):
                print(f"{gpus:>4}  {_name(layout):<18}  {found}")
                continue
            rate = found["tokens_per_second"]
            alone = alone or rate
            print(
                f"{gpus:>4}  {_name(layout):<18} {rate:>10,.0f} {rate / gpus / alone:>11.1%}"
                f" {found['seconds'] * 1e3:>9.1f} {found['plan_seconds'] * 1e3:>8.1f}"
                f" {found['bytes'] / 1e9:>10.2f} {found['plan_bytes'] / 1e9:>8.2f}",
                flush=True,
            )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("preset", nargs="?", default="standard")
    parser.add_argument("--sequences", type=int, default=8, help="of each GPU in a step")
    parser.add_argument("--steps", type=int, default=20, help="that are timed")
    parser.add_argument("--gpus", type=int, default=0, help="most GPUs; 0 means all")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--set", action="append", default=[], metavar="section.key=value")
    for name in ("shard", "expert"):
        parser.add_argument(f"--{name}", type=int, default=1, help=argparse.SUPPRESS)
    return parser.parse_args()


def _layouts(gpus: int) -> list[dict[str, int]]:
    """Return the layouts that are compared on that many GPUs."""
    plain = {"shard": 1, "expert": 1}
    if gpus == 1:
        return [plain]
    return [plain, plain | {"shard": gpus}, plain | {"expert": gpus}, dict.fromkeys(plain, gpus)]


def _name(layout: dict[str, int]) -> str:
    parts = [f"{name} {value}" for name, value in layout.items() if value > 1]
    return ", ".join(parts) or "replicate"


def _started(gpus: int, layout: dict[str, int]) -> dict[str, Any] | str:
    """Return what the processes of a row have measured, or why they have failed."""
    flags = [word for name, value in layout.items() for word in (f"--{name}", str(value))]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(gpus)]
    done = subprocess.run(
        [sys.executable, *launcher, __file__, *sys.argv[1:], *flags],
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if lines:
        return json.loads(lines[-1])
    errors = [line for line in done.stderr.splitlines() if "Error: " in line]
    return errors[0] if errors else f"exit code {done.returncode}"


def _config(options: argparse.Namespace, gpus: int) -> Config:
    pairs = [setting.partition("=") for setting in options.set]
    flags = [word for name, _, value in pairs for word in (f"--{name}", value)]
    config = read_config(options.preset, flags)
    sequences = options.sequences
    train = replace(config.train, batch_size=sequences * gpus, micro_batch_size=sequences)
    parallel = replace(config.parallel, shard=options.shard, expert=options.expert)
    return replace(config, train=replace(train, device=options.device), parallel=parallel)


def _measure(options: argparse.Namespace) -> None:
    """Train as one of the processes of a row; the first one prints the figures as JSON."""
    process = Process.from_environment()
    config = _config(options, process.world_size)
    with joined(process, 600):
        several = process.world_size > 1
        device = choose_device(options.device, process.local_rank if several else None)
        check_layout(config, process.world_size)
        model = seeded(0, config.model, backends_for(config, device))
        placement = placement_of(config.parallel, process.world_size, device)
        lay_out(model, config.parallel, device, placement)
        state = TrainState.new(model, config, placement=placement)
        length = config.train.seq_len + lookahead(config.model)
        generator = torch.Generator().manual_seed(process.rank)
        shape = options.sequences, length
        tokens_BL = torch.randint(1, config.model.vocab_size, shape, generator=generator)
        times: list[float] = []
        for _ in range(WARM_UP + options.steps):
            wait(device)
            begin = time.perf_counter()
            train_step(state, tokens_BL.to(device), 0, config.train)
            wait(device)
            times.append(time.perf_counter() - begin)
        seconds = statistics.median(times[WARM_UP:])
        tokens = config.train.batch_size * config.train.seq_len
        if process.writes:
            figures = {"seconds": seconds, "tokens_per_second": tokens / seconds}
            figures["bytes"] = PeakMemory(device).bytes()
            print(json.dumps(figures | _predicted(config, process.world_size)))


def _predicted(config: Config, gpus: int) -> dict[str, float]:
    """Return the time and the memory that `plan` expects."""
    parallel, train = config.parallel, config.train
    sequences = train.batch_size // gpus
    recomputing = parallel.activation_checkpointing
    layout = Layout(gpus, parallel.expert, parallel.shard > 1, recomputing, sequences, 1)
    expected = planned(config, device_named("here"), layout)
    return {"plan_seconds": expected.seconds, "plan_bytes": expected.memory.peak}


def _device_name(options: argparse.Namespace) -> str:
    is_gpu = torch.cuda.is_available() and options.device != "cpu"
    return torch.cuda.get_device_name() if is_gpu else "CPU"


if __name__ == "__main__":
    main()
