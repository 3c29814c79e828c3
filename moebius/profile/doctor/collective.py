"""A sum over the devices, each with a process of its own."""

import os
import subprocess
import sys
import time
from pathlib import Path

import torch

from moebius.profile.doctor.agreement import Failed

SECONDS = 120  # that it may take, processes and NCCL started


def collective(folder: Path, kind: str = "nccl", world: int = 0) -> str:
    """A sum over the devices, each with a process of its own, in which rank r adds r + 1; and how fast."""
    world = world or torch.cuda.device_count()
    code = "import sys; from moebius.profile.doctor.collective import member; member(*sys.argv[1:])"
    path = os.pathsep.join([str(Path(__file__).parents[3]), *filter(None, [os.environ.get("PYTHONPATH")])])
    arguments = [kind, str(folder / "rendezvous"), str(world)]
    members = [
        subprocess.Popen(
            [sys.executable, "-c", code, *arguments, str(rank)],
            env=os.environ | {"PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    deadline = time.monotonic() + SECONDS
    try:
        said = [member.communicate(timeout=max(0.1, deadline - time.monotonic())) for member in members]
    except subprocess.TimeoutExpired:
        raise Failed(f"no sum over {world} {kind} processes within {SECONDS} s") from None
    finally:
        for member in members:
            member.kill()
            member.wait()
    for rank, (member, (_, errors)) in enumerate(zip(members, said, strict=True)):
        if member.returncode:
            raise Failed(f"rank {rank} of {world} ({kind}): {(errors.strip().splitlines() or ['no message'])[-1]}")
    return f"right on {world} {kind} processes, {said[0][0].strip()}"


def member(kind: str, rendezvous: str, world: str, rank: str) -> None:
    """What a process of `collective` runs."""
    device = torch.device("cuda", int(rank)) if kind == "nccl" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.distributed.init_process_group(kind, init_method=f"file://{rendezvous}", rank=int(rank), world_size=int(world))
    values = torch.full((1 << 26 if kind == "nccl" else 1 << 16,), int(rank) + 1.0, device=device)
    torch.distributed.all_reduce(values)
    assert (values == int(world) * (int(world) + 1) / 2).all(), f"the sum is {values[0].item()}"
    torch.distributed.barrier()
    begun = time.perf_counter()
    for _ in range(5):
        torch.distributed.all_reduce(values)
    torch.distributed.barrier()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    moved = 5 * 2 * (int(world) - 1) / int(world) * values.nbytes  # each of a ring's members sends that much
    print(f"{moved / (time.perf_counter() - begun) / 1e9:.1f} GB/s each way")
    torch.distributed.destroy_process_group()
