"""What a checkpoint costs the training loop: steps with a save among them against as many without, A B A B.

    python bench/save_cost.py --train.batch_size 8      on a GPU; any flags on top of `standard`

A block of steps is long enough for its save to be on disk before it ends, so that what the writing takes from the steps beside
it is counted too. The first save also gets the pinned memory that later ones use again.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from moebius.config import Config
from moebius.model.backends import choose_backends
from moebius.model.transformer import lookahead, seeded
from moebius.parallel.layout import lay_out
from moebius.settings import read_config
from moebius.train.checkpoint_writer import CheckpointWriter
from moebius.train.session import choose_device
from moebius.train.state import TrainState
from moebius.train.step import matmul_dtype, train_step

PAIRS, WARM_UP, SECONDS_BETWEEN = 2, 5, 60


def main() -> None:
    config = read_config("standard", sys.argv[1:])
    device = choose_device(config.train.device)
    backends = choose_backends(config.parallel, device, matmul_dtype(config.train, device), document_masking=False)
    model = seeded(0, config.model, backends).to(device)
    lay_out(model, config.parallel, device)
    state = TrainState.new(model, config)
    length = config.train.seq_len + lookahead(config.model)
    tokens_BL = torch.randint(config.model.vocab_size, (config.train.batch_size, length), device=device)
    with tempfile.TemporaryDirectory() as folder, CheckpointWriter(Path(folder), keep_last=1, keep_every=0) as writer:
        run(state, tokens_BL, config, WARM_UP)
        start = time.perf_counter()
        writer.save(state)
        first = time.perf_counter() - start
        writer.wait()
        written = time.perf_counter() - start - first
        gigabytes = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file()) / 1e9
        steps = 1 + int(1.3 * written / run(state, tokens_BL, config, 3) * 3)
        lost = [_with_save(state, tokens_BL, config, steps, writer) for _ in range(PAIRS)]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{name}: {gigabytes:.1f} GB, in {written:.1f} s beside {steps} steps")
    print(f"the first save stops training for {first:.2f} s")
    print(f"{'':<8} {'copying':>9} {'in all':>9} {'of a minute':>12}")
    for copying, total in lost:
        print(f"{'a save':<8} {copying:7.2f} s {total:7.2f} s {total / SECONDS_BETWEEN:12.1%}")
    print(f"{'median':<8} {'':>9} {'':>9} {statistics.median(total for _, total in lost) / SECONDS_BETWEEN:12.1%}")


def run(state: TrainState, tokens_BL: torch.Tensor, config: Config, steps: int) -> float:
    """Seconds for so many steps."""
    _wait(tokens_BL.device)
    start = time.perf_counter()
    for _ in range(steps):
        train_step(state, tokens_BL, None, config.train)
    _wait(tokens_BL.device)
    return time.perf_counter() - start


def _with_save(
    state: TrainState, tokens_BL: torch.Tensor, config: Config, steps: int, writer: CheckpointWriter
) -> tuple[float, float]:
    """Seconds that training stood still for the copy, and that the block took longer than one without a save."""
    without = run(state, tokens_BL, config, steps)
    start = time.perf_counter()
    writer.save(state)
    copying = time.perf_counter() - start
    with_save = copying + run(state, tokens_BL, config, steps)
    writer.wait()
    return copying, with_save - without


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
