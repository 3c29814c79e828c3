"""The memory that a run uses, on its GPU or, on a CPU, in its process."""

import resource
import sys
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_KIBIBYTE = 1024


class PeakMemory:
    """The largest number of bytes that were in use at the same time.

    On a CPU, only memory that the process owns counts. Pages of mapped files, such as those of
    token shards, are copies of what is on disk, and the system drops them when memory is scarce.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._own = 0.0
        self._largest_total = 0

    def bytes(self) -> float:
        """Return the largest number of bytes in use so far."""
        if self._device.type == "cuda":
            return float(torch.cuda.max_memory_allocated(self._device))
        sizes = _sizes()
        if sizes is None:  # only Linux tells what is mapped
            unit = 1 if sys.platform == "darwin" else _KIBIBYTE
            return float(unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        # The system only keeps the peak of owned and mapped memory together. If it has risen since
        # the last call, it was reached just now, with as many mapped pages as there are now.
        own = sizes["RssAnon"] + sizes["RssShmem"]
        if sizes["VmHWM"] > self._largest_total:
            self._largest_total = sizes["VmHWM"]
            own = max(own, sizes["VmHWM"] - sizes["RssFile"])
        self._own = max(self._own, float(own))
        return self._own


def _sizes() -> dict[str, int] | None:
    """Return the process's sizes in bytes by the names of proc(5); None where it has none."""
    names = ("VmHWM", "RssAnon", "RssFile", "RssShmem")
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    pairs = (line.split(":", 1) for line in lines if ":" in line)
    sizes = {name: int(value.split()[0]) * _KIBIBYTE for name, value in pairs if name in names}
    return sizes if len(sizes) == len(names) else None
