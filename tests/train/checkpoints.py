"""A made-up checkpoint with every kind of tensor, and the error that a damaged one causes."""

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from moebius.errors import CheckpointError
from moebius.train import checkpoint

FILES = [
    "model.safetensors",
    "optimizer.safetensors",
    "random.safetensors",
    "state.json",
    "manifest.json",
]
"""Names of the files of the made-up checkpoint, in the order in which they are written."""

STATE = {
    "step": 7,
    "tokens": 12_345_678_901,
    "best": 1.25,
    "name": "émile",
    "list": [1, None, True],
}


def some_tensors() -> checkpoint.Groups:
    """Return tied, transposed, sliced, empty, integer and non-finite tensors in three groups."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 3, generator=generator)
    model = {
        "weight": weight,
        "tied": weight,
        "transposed": weight.T,
        "rows": weight[1:4],
        "every_second": weight[::2, ::2],
        "expanded": torch.randn(1, 3, generator=generator).expand(4, 3),
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 3),
        "bfloat16": torch.randn(7, generator=generator).bfloat16(),
        "count": torch.tensor(2**40),
        "mask": torch.tensor([True, False]),
        "not_finite": torch.tensor([float("nan"), float("inf"), -0.0]),
        "trained": torch.nn.Parameter(torch.randn(2, generator=generator)),
    }
    return {
        "model": model,
        "optimizer": {"weight/step": torch.tensor(3.0)},
        "random": checkpoint.random_state(),
    }


def is_same(first: Tensor, second: Tensor) -> bool:
    """Return whether two tensors have the same bits, so that NaN equals NaN, and -0 is not 0."""
    first, second = first.detach().contiguous(), second.detach().contiguous()
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    return torch.equal(first.reshape(-1).view(torch.uint8), second.reshape(-1).view(torch.uint8))


def names_by_group(groups: checkpoint.Groups) -> dict[str, set[str]]:
    """Return the names of the tensors in each group."""
    return {group: set(tensors) for group, tensors in groups.items()}


def are_same(first: checkpoint.Groups, second: checkpoint.Groups) -> bool:
    """Return whether two checkpoints have the same groups of the same tensors, bit by bit."""
    return names_by_group(first) == names_by_group(second) and all(
        is_same(tensor, second[group][name])
        for group, tensors in first.items()
        for name, tensor in tensors.items()
    )


def refusal_of(folder: Path) -> str:
    """Return the one-line error with which the checkpoint in the folder is refused."""
    with pytest.raises(CheckpointError) as refusal:
        checkpoint.load(folder)
    line = str(refusal.value)
    assert "\n" not in line and str(folder) in line
    assert refusal.value.exit_code == 4
    return line


def names_in(folder: Path) -> list[str]:
    """Return the sorted names of everything in a folder, hidden names included."""
    return sorted(path.name for path in folder.iterdir())


def lie(monkeypatch: pytest.MonkeyPatch, name: str, how: str) -> None:
    """Make the disk store something else than it was given in every file of that name.

    The file changes right after it was synced: one bit flips, its second half is zeros, missing or
    followed by more, or nothing of it arrived.
    """
    fsync = os.fsync

    def lying(descriptor: int) -> None:
        fsync(descriptor)
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if path.name == name:
            path.write_bytes(spoiled(path.read_bytes(), how))

    monkeypatch.setattr(os, "fsync", lying)


def spoiled(data: bytes, how: str) -> bytes:
    """Return the data with one kind of damage."""
    half = len(data) // 2
    return {
        "flip": data[:half] + bytes([data[half] ^ 4]) + data[half + 1 :],
        "zeros": data[:half] + bytes(len(data) - half),
        "truncate": data[:half],
        "lengthen": data + data[half:],
        "nothing": b"",
    }[how]
