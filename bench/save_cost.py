"""Measure what a checkpoint costs the training loop.

    python bench/save_cost.py --train.batch_size 8      on a GPU; any flags on top of `standard`

Blocks of steps with a save among them alternate with as many steps without one, A B A B. A block
is so long that its save is on disk before it ends. What writing takes from the steps beside it is
therefore counted too. The first save also allocates the pinned memory that later ones use again.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from moebius.config import Config
from moebius.config.files import read_config
from moebius.hardware.backends import choose_backends
from moebius.hardware.device import choose_device, describe, wait
from moebius.hardware.precision import matmul_dtype
from moebius.model.transformer import lookahead, seeded
from moebius.parallel.layout import lay_out
from moebius.train.checkpoint_writer import CheckpointWriter
from moebius.train.state import TrainState
from moebius.train.step import train_step

PAIRS, WARM_UP, SECONDS_BETWEEN = 2, 5, 60


def main() -> None:
    config = read_config("standard", sys.argv[1:])
    device = choose_device(config.train.device)
    backends = choose_backends(
        config.parallel, device, matmul_dtype(config.train, device), document_masking=False
    )
    model = seeded(0, config.model, backends).to(device)
    lay_out(model, config.parallel, device)
    state = TrainState.new(model, config)
    length = config.train.seq_len + lookahead(config.model)
    tokens_BL = torch.randint(
        config.model.vocab_size, (config.train.batch_size, length), device=device
    )
    with (
        tempfile.TemporaryDirectory() as folder,
        CheckpointWriter(Path(folder), keep_last=1, keep_every=0) as writer,
    ):
        run(state, tokens_BL, config, WARM_UP)
        start = time.perf_counter()
        writer.save(state)
        first = time.perf_counter() - start
        writer.wait()
        written = time.perf_counter() - start - first
        files = [file for file in Path(folder).rglob("*") if file.is_file()]
        gigabytes = sum(file.stat().st_size for file in files) / 1e9
        steps = 1 + int(1.3 * written / run(state, tokens_BL, config, 3) * 3)
        costs = [_cost_of_a_save(state, tokens_BL, config, steps, writer) for _ in range(PAIRS)]
    print(f"{describe(device)}: {gigabytes:.1f} GB, in {written:.1f} s beside {steps} steps")
    print(f"the first save stops training for {first:.2f} s")
    print(f"{'':<8} {'copying':>9} {'in all':>9} {'of a minute':>12}")
    for copying, total in costs:
        print(f"{'a save':<8} {copying:7.2f} s {total:7.2f} s {total / SECONDS_BETWEEN:12.1%}")
    median = statistics.median(total for _, total in costs)
    print(f"{'median':<8} {'':>9} {'':>9} {median / SECONDS_BETWEEN:12.1%}")


def run(state: TrainState, tokens_BL: torch.Tensor, config: Config, steps: int) -> float:
    """Make some steps, and return the seconds that they took together."""
    wait(tokens_BL.device)
    start = time.perf_counter()
    for _ in range(steps):
        train_step(state, tokens_BL, None, config.train)
    wait(tokens_BL.device)
    return time.perf_counter() - start


def _cost_of_a_save(
    state: TrainState,
    tokens_BL: torch.Tensor,
    config: Config,
    steps: int,
    writer: CheckpointWriter,
) -> tuple[float, float]:
    """Return two costs in seconds.

    The first is the time that training stood still for the copy. The second is how much longer
    the block took than one without a save.
    """
    without = run(state, tokens_BL, config, steps)
    start = time.perf_counter()
    writer.save(state)
    copying = time.perf_counter() - start
    with_save = copying + run(state, tokens_BL, config, steps)
    writer.wait()
    return copying, with_save - without


if __name__ == "__main__":
    main()
