"""What the processes of a run tell each other: sums, decisions and small values.

Each process divides its sums by counts of the whole step, so that its losses and gradients are
parts of the step's, which only have to be added up. What a step reports therefore does not depend
on the number of processes that computed it. With one process every function returns its argument.
"""

import json
from typing import Any

import torch
from torch import Tensor


def has_peers() -> bool:
    """Return whether this process is connected with others."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def num_ranks() -> int:
    """Return the number of processes of the run."""
    return torch.distributed.get_world_size() if has_peers() else 1


def own_rank() -> int:
    """Return the number of this process, from 0."""
    return torch.distributed.get_rank() if has_peers() else 0


def sum_over_ranks(values: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes. Every process gets the sum."""
    if not has_peers():
        return values
    total = values.clone()
    torch.distributed.all_reduce(total)
    return total


def largest(value: int) -> int:
    """Return the largest of the processes' values, for a decision that all of them make alike."""
    if not has_peers():
        return value
    values = torch.tensor([value])
    torch.distributed.all_reduce(values, torch.distributed.ReduceOp.MAX)
    return int(values)


def from_first(value: Any) -> Any:
    """Return the JSON value that the first process has."""
    if not has_peers():
        return value
    data = _bytes(value)
    size = torch.tensor([len(data)])
    torch.distributed.broadcast(size, 0)
    if torch.distributed.get_rank():
        data = torch.empty(int(size), dtype=torch.uint8)
    torch.distributed.broadcast(data, 0)
    return json.loads(bytes(data.tolist()))


def of_all(value: Any) -> list[Any]:
    """Return the JSON values of all processes, in the order of their ranks."""
    if not has_peers():
        return [value]
    data, world_size = _bytes(value), torch.distributed.get_world_size()
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(world_size)]
    torch.distributed.all_gather(sizes, torch.tensor([len(data)]))
    longest = max(map(int, sizes))
    padded = torch.zeros(longest, dtype=torch.uint8)
    padded[: len(data)] = data
    parts = [torch.empty_like(padded) for _ in range(world_size)]
    torch.distributed.all_gather(parts, padded)
    pairs = zip(parts, sizes, strict=True)
    return [json.loads(bytes(part[: int(size)].tolist())) for part, size in pairs]


def _bytes(value: Any) -> Tensor:
    # JSON, because torch's own functions for objects unpickle what they get
    return torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8)
