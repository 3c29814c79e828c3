"""Properties of a machine that would make a run slow, wrong or impossible."""

from collections.abc import Iterator, Mapping

import torch

from moebius.config import Config
from moebius.cost.units import byte_size, counted
from moebius.doctor.machine import SHARED_MEMORY, Gpu, Machine
from moebius.hardware.precision import matmul_dtype

LITTLE_DISK, LITTLE_SHARED_MEMORY = 10e9, 1e9  # bytes
MOSTLY_FREE = 0.9  # share of a GPU's memory
BFLOAT16 = (8, 0)  # lowest compute capability of GPUs with bfloat16 arithmetic
HARMFUL = {
    "CUDA_LAUNCH_BLOCKING": "makes the host wait for every kernel",
    "TORCH_COMPILE_DISABLE": "turns compilation off without saying so",
    "TORCHDYNAMO_DISABLE": "turns compilation off without saying so",
    "NVIDIA_TF32_OVERRIDE": "rounds float32 products to 10 bits",
    "PYTORCH_NO_CUDA_MEMORY_CACHING": "allocates memory anew for every tensor",
}
"""Harmful environment variables, and what they do when they are set."""


def pitfalls(
    machine: Machine, config: Config, device: torch.device, environment: Mapping[str, str]
) -> list[str]:
    """Return a line for each pitfall, with what to do about it."""
    busy_threads = 1 if device.type == "cuda" else machine.threads
    is_omp = not config.train.threads and "OMP_NUM_THREADS" in environment
    lines = [*_of_processor(machine, "OMP_NUM_THREADS" if is_omp else "", busy_threads)]
    if device.type == "cuda":
        lines += _of_gpu(machine, machine.gpus[device.index or 0], config, device)
        lines += _of_environment(environment)
    else:
        lines += _without_gpu(machine, config, device, environment)
    return [*lines, *_of_disks_and_packages(machine)]


def _of_processor(machine: Machine, variable: str, busy_threads: int) -> Iterator[str]:
    """Yield the pitfalls of the processor. `variable` has set the number of threads, if any."""
    available = min(machine.cores, max(1, round(machine.quota)))
    if machine.threads > available:
        remedy = f"export {variable}={available}" if variable else f"--train.threads {available}"
        yield (
            f"torch runs {counted(machine.threads, 'thread')} on the time of "
            f"{counted(available, 'core')}: {remedy}"
        )
    if crowding := machine.usage.beside(busy_threads).crowding:
        yield f"{crowding}: a run will be slow, and measured times will be too long"


def _without_gpu(
    machine: Machine, config: Config, device: torch.device, environment: Mapping[str, str]
) -> Iterator[str]:
    if machine.driver and not machine.gpus:
        if environment.get("CUDA_VISIBLE_DEVICES") == "":
            yield "CUDA_VISIBLE_DEVICES hides the GPU: unset it"
        else:
            yield (
                f"there is a GPU (driver {machine.driver}) that torch {machine.torch} cannot use: "
                "install a CUDA build of torch"
            )
    if matmul_dtype(config.train, device) == torch.bfloat16:
        yield (
            "most CPUs emulate bfloat16, many times as slowly as float32: --train.dtype float32"
        )


def _of_gpu(machine: Machine, gpu: Gpu, config: Config, device: torch.device) -> Iterator[str]:
    dtype = matmul_dtype(config.train, device)
    if gpu.capability < BFLOAT16 and dtype == torch.bfloat16:
        yield f"{gpu.name} has no bfloat16 arithmetic: --train.dtype float32"
    if gpu.capability >= BFLOAT16 and dtype == torch.float32:
        precision = torch.get_float32_matmul_precision()
        yield (
            f"float32 products (precision {precision!r}) leave the tensor cores idle: "
            "--train.dtype bfloat16"
        )
    if not machine.triton:
        yield (
            "triton is not installed, so nothing can be compiled: pip install triton, or "
            "--parallel.compile off"
        )
    if gpu.free < MOSTLY_FREE * gpu.memory:
        yield (
            f"{byte_size(gpu.memory - gpu.free)} of {gpu.name} are in use, by other processes or "
            "for its context: nvidia-smi shows by which"
        )
    if len(machine.gpus) > 1 and machine.shared_memory < LITTLE_SHARED_MEMORY:
        yield (
            f"{SHARED_MEMORY} has {byte_size(machine.shared_memory)}, too little for NCCL's "
            "buffers: docker run --shm-size=1g, or --ipc=host"
        )


def _of_environment(environment: Mapping[str, str]) -> Iterator[str]:
    for name, harm in HARMFUL.items():
        if environment.get(name, "0") not in ("", "0"):
            yield f"{name}={environment[name]} {harm}: unset it"


def _of_disks_and_packages(machine: Machine) -> Iterator[str]:
    for place, free in machine.free_disk.items():
        if free < LITTLE_DISK:
            yield (
                f"{byte_size(free)} free for {place}, and a checkpoint takes 12 bytes per "
                f"parameter: free some, or choose another --{place}"
            )
    versions = machine.packages.get("packages", {})
    if missing := [name for name, version in versions.items() if not version]:
        yield f"missing: {', '.join(missing)}: pip install {' '.join(missing)}"
