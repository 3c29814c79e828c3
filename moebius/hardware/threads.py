"""The threads of the processor: how many of them torch runs."""

import os

from moebius.hardware.processor import quota


def use_threads(count: int) -> None:
    """Let torch run `count` threads on the processor.

    0 leaves the number to torch, which runs one per core, and to OMP_NUM_THREADS. But it is
    lowered to the number of cores whose time this process may use, because a container may have
    less time than cores.
    """
    import torch

    if count:
        torch.set_num_threads(count)
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(torch.get_num_threads(), max(1, round(quota()))))
