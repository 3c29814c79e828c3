"""The threads of the processor: how many torch runs, and what they do while they wait for work."""

import os
from collections.abc import MutableMapping

from moebius.hardware.processor import quota

SPINS = "1000"
"""How often a thread looks for work before it sleeps: for tens of microseconds. By default, GNU's
OpenMP, which torch comes with, looks 300,000 times. That takes milliseconds of a core that another
process could use (https://gcc.gnu.org/onlinedocs/libgomp/GOMP_005fSPINCOUNT.html)."""
BLOCK_TIME = "0"
"""Milliseconds for which a thread of Intel's OpenMP, which other builds of torch use, looks for
work before it sleeps."""
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Variables that say how threads wait. If one of them is set, the user has decided."""


def let_idle_threads_sleep(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let threads that wait for work sleep, so that another run on this machine gets their cores.

    OpenMP reads the environment when it is loaded, so this only has an effect before torch is
    imported. Processes that are started later inherit it.
    """
    if not any(name in environment for name in WAITING):
        environment["GOMP_SPINCOUNT"] = SPINS
        environment["KMP_BLOCKTIME"] = BLOCK_TIME


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
