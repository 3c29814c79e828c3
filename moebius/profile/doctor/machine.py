"""What a machine has, and what about it would spoil a run."""

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from moebius.config import Config
from moebius.data.workers import cores
from moebius.train.step import matmul_dtype

LITTLE_DISK, LITTLE_SHARED = 10e9, 1e9
SHARED_MEMORY = Path("/dev/shm")
QUOTA = Path("/sys/fs/cgroup/cpu.max")


@dataclass(frozen=True)
class Gpu:
    """Bytes; memory that is free now."""

    name: str
    memory: int
    free: int
    capability: tuple[int, int]


@dataclass(frozen=True)
class Machine:
    """Bytes, and versions ("" for what is not there). cores: those this process may use; quota: CPUs' time it is given."""

    python: str
    system: str
    torch: str
    cuda: str
    driver: str
    triton: str
    gpus: list[Gpu]
    processor: str
    cores: int
    quota: float
    threads: int
    load: float
    memory: int
    free_disk: dict[str, int]
    shared_memory: int
    packages: dict[str, dict[str, str]]

    def rows(self) -> list[tuple[str, str]]:
        """For the terminal."""
        cuda = f"CUDA {self.cuda}, driver {self.driver or 'not found'}" if self.cuda else "without CUDA"
        disk = ", ".join(f"{_gigabytes(free)} free for {place}" for place, free in self.free_disk.items())
        return [
            ("python", f"{self.python} on {self.system}"),
            ("torch", f"{self.torch}, {cuda}"),
            ("triton", self.triton or "not installed"),
            *(("gpu", f"{gpu.name}, {_gigabytes(gpu.memory)}, {_gigabytes(gpu.free)} free, sm_{gpu.capability[0]}"
               f"{gpu.capability[1]}") for gpu in self.gpus),
            ("cpu", f"{self.processor}, {self.cores} cores, {self.threads} threads, {_gigabytes(self.memory)} of memory"),
            ("disk", disk),
            *((f"{group}", ", ".join(f"{name} {version or 'MISSING'}" for name, version in found.items()))
              for group, found in self.packages.items()),
        ]  # fmt: skip


def machine(config: Config) -> Machine:
    """This one. Nothing is allocated on a GPU but its context."""
    count = torch.cuda.device_count()
    return Machine(
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()}",
        torch=torch.__version__,
        cuda=torch.version.cuda or "",
        driver=_driver(),
        triton=_version("triton"),
        gpus=[_gpu(index) for index in range(count)],
        processor=_processor(),
        cores=cores(),
        quota=_quota(),
        threads=torch.get_num_threads(),
        load=os.getloadavg()[0],
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        free_disk={"data.cache": _free(config.data.cache), "train.out": _free(config.train.out)},
        shared_memory=shutil.disk_usage(SHARED_MEMORY).total if SHARED_MEMORY.is_dir() else 0,
        packages=_packages(),
    )


def pitfalls(found: Machine, config: Config, device: torch.device, environment: Mapping[str, str]) -> list[str]:
    """What would make a run slow, wrong or impossible here: a line each, with what to do."""
    return [*_of_processor(found, environment), *_of_gpu(found, config, device, environment), *_of_rest(found)]


def _of_processor(found: Machine, environment: Mapping[str, str]) -> list[str]:
    lines = []
    available = min(found.cores, max(1, round(found.quota)))
    asked = environment.get("OMP_NUM_THREADS", "")
    if asked.isdigit() and int(asked) > available:
        lines.append(f"OMP_NUM_THREADS={asked} is more than the {available} cores at hand: export OMP_NUM_THREADS={available}")
    elif found.threads > available:
        lines.append(f"torch runs {found.threads} threads on {available} cores' time: export OMP_NUM_THREADS={available}")
    if found.load > found.cores + 1:
        lines.append(f"others are using the processor (load {found.load:.1f} on {found.cores} cores): times will be too long")
    return lines


def _of_gpu(found: Machine, config: Config, device: torch.device, environment: Mapping[str, str]) -> list[str]:
    lines, dtype = [], matmul_dtype(config.train, device)
    if device.type != "cuda":
        if found.driver and not found.gpus:
            hidden = "CUDA_VISIBLE_DEVICES hides the GPU: unset it" if environment.get("CUDA_VISIBLE_DEVICES") == "" else (
                f"there is a GPU (driver {found.driver}) that torch {found.torch} cannot use: install a CUDA build of torch"
            )  # fmt: skip
            lines.append(hidden)
        if dtype == torch.bfloat16:
            lines.append("most CPUs emulate bfloat16, many times as slowly as float32: --train.dtype float32")
        return lines
    gpu = found.gpus[device.index or 0]
    if gpu.capability < (8, 0) and dtype == torch.bfloat16:
        lines.append(f"{gpu.name} has no bfloat16 arithmetic: --train.dtype float32")
    if dtype == torch.float32 and gpu.capability >= (8, 0):
        precision = torch.get_float32_matmul_precision()
        lines.append(f"float32 products (precision {precision!r}) leave the tensor cores idle: --train.dtype bfloat16")
    if not found.triton:
        lines.append("triton is not installed: nothing can be compiled; pip install triton, or --parallel.compile off")
    if gpu.free < 0.9 * gpu.memory:
        used = _gigabytes(gpu.memory - gpu.free)
        lines.append(f"{used} of {gpu.name} are taken, by other processes or as its context: nvidia-smi shows whose")
    if len(found.gpus) > 1 and found.shared_memory < LITTLE_SHARED:
        size = _gigabytes(found.shared_memory)
        lines.append(f"{SHARED_MEMORY} has {size}, too little for NCCL's buffers: docker run --shm-size=1g, or --ipc=host")
    for name, harm in HARMFUL.items():
        if environment.get(name, "0") not in ("", "0"):
            lines.append(f"{name}={environment[name]} {harm}: unset it")
    return lines


HARMFUL = {
    "CUDA_LAUNCH_BLOCKING": "makes the host wait for every kernel",
    "TORCH_COMPILE_DISABLE": "turns compilation off without a word",
    "TORCHDYNAMO_DISABLE": "turns compilation off without a word",
    "NVIDIA_TF32_OVERRIDE": "rounds float32 products to 10 bits",
    "PYTORCH_NO_CUDA_MEMORY_CACHING": "allocates each tensor anew",
}


def _of_rest(found: Machine) -> list[str]:
    lines = [
        f"{_gigabytes(free)} free for {place}; a checkpoint takes 12 bytes a parameter: free some, or choose another --{place}"
        for place, free in found.free_disk.items()
        if free < LITTLE_DISK
    ]
    if missing := [name for name, version in found.packages.get("packages", {}).items() if not version]:
        lines.append(f"missing: {', '.join(missing)}; pip install {' '.join(missing)}")
    return lines


def _gpu(index: int) -> Gpu:
    free, memory = torch.cuda.mem_get_info(index)
    return Gpu(torch.cuda.get_device_name(index), memory, free, torch.cuda.get_device_capability(index))


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return ""
    return said[0] if said else ""


def _processor() -> str:
    try:
        names = re.findall(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        names = []
    return names[0] if names else platform.machine()


def _quota() -> float:
    """A container may be given less time than the cores it sees."""
    try:
        quota, period = QUOTA.read_text().split()
        return float(quota) / float(period)
    except (OSError, ValueError):  # none, or "max"
        return float(cores())


def _free(folder: str) -> int:
    path = Path(os.path.expanduser(folder)).absolute()  # noqa: PTH111  (Path.expanduser raises RuntimeError for ~nobody)
    return shutil.disk_usage(next(place for place in (path, *path.parents) if place.is_dir())).free


def _packages() -> dict[str, dict[str, str]]:
    """What Moebius was installed to need, by extra: versions."""
    try:
        needed = importlib.metadata.requires("moebius") or []
    except importlib.metadata.PackageNotFoundError:  # run from a checkout
        return {}
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for requirement in needed:
        name = re.match(r"[\w.-]+", requirement)
        extra = re.search(r"extra\s*==\s*[\"']([\w-]+)", requirement)
        if name:
            found[f"for {extra[1]}" if extra else "packages"][name[0]] = _version(name[0])
    return dict(found)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB"
