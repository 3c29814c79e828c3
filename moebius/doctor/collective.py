"""Sum a tensor over all devices, with one process per device."""

import subprocess
import time
from pathlib import Path

import torch

from moebius.cost.units import byte_size
from moebius.data.child import python_command
from moebius.doctor.trial import TrialFailed

SECONDS = 120  # time limit for everything, including the start of the processes and of NCCL
SUMS = 5  # number of timed sums
CODE = "import sys; from moebius.doctor.collective import member; member(*sys.argv[1:])"


def collective(folder: Path, kind: str = "nccl", world: int = 0) -> str:
    """Sum a tensor over all devices, check the sum, and return its speed in one line.

    folder: where to put the file through which the processes find each other. kind: the backend
    of torch.distributed. world: number of processes; 0 means one per GPU. Raises TrialFailed.
    """
    world = world or torch.cuda.device_count()
    arguments = [kind, str(folder / "rendezvous"), str(world)]
    members = [
        subprocess.Popen(
            python_command(CODE, *arguments, str(rank)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    deadline = time.monotonic() + SECONDS
    try:
        outputs = [
            process.communicate(timeout=max(0.1, deadline - time.monotonic()))
            for process in members
        ]
    except subprocess.TimeoutExpired:
        raise TrialFailed(f"no sum over {world} {kind} processes within {SECONDS} s") from None
    finally:
        for process in members:
            process.kill()
            process.wait()
    for rank, (process, (_, errors)) in enumerate(zip(members, outputs, strict=True)):
        if process.returncode:
            last_line = (errors.strip().splitlines() or ["no message"])[-1]
            raise TrialFailed(f"rank {rank} of {world} ({kind}): {last_line}")
    return f"right on {world} {kind} processes, {outputs[0][0].strip()}"


def member(kind: str, rendezvous: str, world: str, rank: str) -> None:
    """Run one process of `collective`: rank r contributes r + 1 to the sum. Prints the speed."""
    device = torch.device("cuda", int(rank)) if kind == "nccl" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.distributed.init_process_group(
        kind, init_method=f"file://{rendezvous}", rank=int(rank), world_size=int(world)
    )
    values = torch.full((1 << 26 if kind == "nccl" else 1 << 16,), int(rank) + 1.0, device=device)
    torch.distributed.all_reduce(values)
    expected = int(world) * (int(world) + 1) / 2
    assert (values == expected).all(), f"the sum is {values[0].item()}, and not {expected}"
    torch.distributed.barrier()
    start = time.perf_counter()
    for _ in range(SUMS):
        torch.distributed.all_reduce(values)
    torch.distributed.barrier()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - start
    # In a ring, each member sends this share of the tensor twice.
    sent = SUMS * 2 * (int(world) - 1) / int(world) * values.nbytes
    print(f"{byte_size(sent / seconds)}/s each way")
    torch.distributed.destroy_process_group()
