"""How long it takes to write a checkpoint and to read it back, by the size of its files.

    python bench/save_files.py [GIGABYTES] [ROUNDS] [FOLDER]

A checkpoint of random numbers, one third weights and two thirds optimizer, is written into a
temporary folder of FOLDER as in a run: hashed, written, synced, read back from the disk, compared.
More than four files are shared among four threads. The sizes take turns, A B C A B C, and the
seconds of a core are printed too, since the disk's depend on other work.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from moebius.train import checkpoint

PART_MEGABYTES = (1024, 256, 128, 64)
NUM_TENSORS = 24
"""Number of tensors of equal size."""


def main(gigabytes: float, rounds: int, place: str | None) -> None:
    """Print the median, lowest and highest seconds for each size of files."""
    torch.set_num_threads(1)
    count = int(gigabytes * 1e9 / 4 / NUM_TENSORS)
    tensors = [torch.randn(count) for _ in range(NUM_TENSORS)]
    third = NUM_TENSORS // 3
    groups = {
        "model": {f"weight {number}": tensor for number, tensor in enumerate(tensors[:third])},
        "optimizer": {f"state {number}": tensor for number, tensor in enumerate(tensors[third:])},
    }
    seconds: dict[int, list[tuple[float, float]]] = {size: [] for size in PART_MEGABYTES}
    with tempfile.TemporaryDirectory(dir=place) as folder:
        for _ in range(rounds):
            for size in PART_MEGABYTES:
                checkpoint.PART_BYTES = size << 20
                start, cpu = time.perf_counter(), time.process_time()
                checkpoint.write(Path(folder, "step-00000001"), groups, {"step": 1})
                taken = time.perf_counter() - start, time.process_time() - cpu
                seconds[size].append(taken)
    print(f"{gigabytes:.1f} GB, {rounds} rounds in turns")
    for size, taken in seconds.items():
        wall, cpu = ([pair[index] for pair in taken] for index in (0, 1))
        print(
            f"files of up to {size:4d} MiB: {statistics.median(wall):5.2f} s "
            f"({min(wall):.2f} to {max(wall):.2f}), {statistics.median(cpu):.2f} s of a core"
        )


if __name__ == "__main__":
    arguments = sys.argv[1:]
    main(
        float(arguments[0]) if arguments else 1.0,
        int(arguments[1]) if len(arguments) > 1 else 5,
        arguments[2] if len(arguments) > 2 else None,
    )
