"""What this machine has: versions, GPUs, processor, memory, disks, packages."""

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch

from moebius.config import Config
from moebius.config.paths import expanded
from moebius.cost.units import byte_size, counted
from moebius.hardware.processor import SINCE_THE_START, Usage, cores, quota

SHARED_MEMORY = Path("/dev/shm")
DEVELOPMENT = "dev"
"""Name of the extra with the packages that only developers of Moebius need."""


@dataclass(frozen=True)
class Gpu:
    """A GPU of the machine."""

    name: str
    memory: int
    """Bytes of memory."""
    free: int
    """Bytes of memory that are free now."""
    capability: tuple[int, int]
    """Compute capability, major and minor."""


@dataclass(frozen=True)
class Machine:
    """What the machine has. The version of something that is not installed is empty."""

    python: str
    system: str
    torch: str
    cuda: str
    driver: str
    """Version of the NVIDIA driver."""
    triton: str
    gpus: list[Gpu]
    processor: str
    cores: int
    """Number of cores that this process may use."""
    quota: float
    """CPU time per second that this process may use; a container may set less than `cores`."""
    threads: int
    """Number of threads that torch runs."""
    usage: Usage
    """Who has used the processor since this command began."""
    memory: int
    """Bytes of memory."""
    free_disk: dict[str, int]
    """Free bytes on the disk that each of these fields of the configuration points to."""
    shared_memory: int
    """Bytes of shared memory, which NCCL needs. 0 if the system has none."""
    packages: dict[str, dict[str, str]]
    """Versions of the packages that Moebius needs: for all runs, and for each optional extra."""

    def rows(self) -> list[tuple[str, str]]:
        """Return pairs of a name and a text to show on the terminal."""
        cuda = (
            f"CUDA {self.cuda}, driver {self.driver or 'not found'}"
            if self.cuda
            else "without CUDA"
        )
        return [
            ("python", f"{self.python} on {self.system}"),
            ("torch", f"{self.torch}, {cuda}"),
            ("triton", self.triton or "not installed"),
            *(("gpu", _gpu_in_words(gpu)) for gpu in self.gpus),
            (
                "cpu",
                f"{self.processor}, {counted(self.cores, 'core')}, "
                f"{counted(self.threads, 'thread')}, "
                f"{byte_size(self.memory)} of memory",
            ),
            ("disk", ", ".join(f"{byte_size(n)} free for {p}" for p, n in self.free_disk.items())),
            *(
                (group, ", ".join(f"{name} {v or 'MISSING'}" for name, v in versions.items()))
                for group, versions in self.packages.items()
            ),
        ]


def machine(config: Config) -> Machine:
    """Return what this machine has. Nothing is allocated on a GPU except its context."""
    return Machine(
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()}",
        torch=torch.__version__,
        cuda=torch.version.cuda or "",
        driver=_driver(),
        triton=_version("triton"),
        gpus=[_gpu(index) for index in range(torch.cuda.device_count())],
        processor=_processor(),
        cores=cores(),
        quota=quota(),
        threads=torch.get_num_threads(),
        usage=SINCE_THE_START.usage(),
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        free_disk={"data.cache": _free(config.data.cache), "train.out": _free(config.train.out)},
        shared_memory=shutil.disk_usage(SHARED_MEMORY).total if SHARED_MEMORY.is_dir() else 0,
        packages=_packages(),
    )


def _gpu(index: int) -> Gpu:
    free, memory = torch.cuda.mem_get_info(index)
    name, capability = (
        torch.cuda.get_device_name(index),
        torch.cuda.get_device_capability(index),
    )
    return Gpu(name, memory, free, capability)


def _gpu_in_words(gpu: Gpu) -> str:
    major, minor = gpu.capability
    return f"{gpu.name}, {byte_size(gpu.memory)}, {byte_size(gpu.free)} free, sm_{major}{minor}"


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return next(iter(done.stdout.split()), "")


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    name = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return name[1] if name else platform.machine()


def _free(folder: str) -> int:
    """Return the free bytes of the disk on which a folder is, or would be created."""
    path = expanded(folder).absolute()
    existing = next(place for place in (path, *path.parents) if place.is_dir())
    return shutil.disk_usage(existing).free


def _packages() -> dict[str, dict[str, str]]:
    """Return the versions of the packages that Moebius's metadata lists; {} in a checkout.

    Those that only developers of Moebius need are left out.
    """
    try:
        requirements = importlib.metadata.requires("moebius") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    packages: dict[str, dict[str, str]] = defaultdict(dict)
    for requirement in requirements:
        name = re.match(r"[\w.-]+", requirement)
        extra = re.search(r"extra\s*==\s*[\"']([\w-]+)", requirement)
        if name and not (extra and extra[1] == DEVELOPMENT):
            packages[f"for {extra[1]}" if extra else "packages"][name[0]] = _version(name[0])
    return dict(packages)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
