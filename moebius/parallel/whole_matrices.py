"""Work on whole matrices whose rows are spread over processes, each matrix on one process.

An optimizer such as Muon orthogonalizes a matrix as a whole; its parts cannot be orthogonalized
one by one. The matrices are dealt out to the processes in turns. Each process gets all parts of
its matrices, works on them, and returns the parts of the results.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.tensor import DTensor, Shard


def has_whole_matrices(parameter: Tensor) -> bool:
    """Return whether each matrix of a parameter (..., rows, columns) is whole on some process."""
    split = split_dimension(parameter)
    return split is None or split < parameter.ndim - 2


def split_dimension(tensor: Tensor) -> int | None:
    """Return the dimension in which a tensor is split over processes; None if it is not."""
    if not isinstance(tensor, DTensor):
        return None
    return next((p.dim for p in tensor.placements if isinstance(p, Shard)), None)


def split_group(tensor: DTensor) -> ProcessGroup:
    """Return the group of processes that a tensor is split over."""
    index = next(i for i, p in enumerate(tensor.placements) if isinstance(p, Shard))
    return tensor.device_mesh.get_group(index)


def part_ends(length: int, size: int) -> list[int]:
    """Return where the parts of a split dimension begin, which are those of `Tensor.chunk`.

    The last number is where the last part ends.
    """
    longest = -(-length // size)
    return [min(longest * n, length) for n in range(size + 1)]


def on_whole_matrices(
    parts: list[Tensor], like: list[DTensor], work: Callable[[list[Tensor]], list[Tensor]]
) -> list[Tensor]:
    """Return this process's parts of the results of some work on whole matrices.

    parts: this process's parts of them. like: tensors that are split in the same way, all over
    the same processes. work: gets the matrices that this process has to work on, and returns as
    many results of the same shapes.
    """
    group = split_group(like[0])
    size, rank = torch.distributed.get_world_size(group), torch.distributed.get_rank(group)
    shapes = [_part_shapes(tensor, size) for tensor in like]  # of each matrix and process
    owned = [list(range(owner, len(like), size)) for owner in range(size)]
    flat = _exchanged(
        [[parts[number] for number in owned[owner]] for owner in range(size)],
        [[shapes[number][sender] for number in owned[rank]] for sender in range(size)],
        parts[0],
        group,
    )
    wholes = [
        torch.cat([flat[sender][place] for sender in range(size)], _split(like[number]))
        for place, number in enumerate(owned[rank])
    ]
    results = work(wholes)
    pieces = [  # of each matrix, one for each process
        result.split([shape[_split(like[n])] for shape in shapes[n]], _split(like[n]))
        for n, result in zip(owned[rank], results, strict=True)
    ]
    returned = _exchanged(
        [[piece[receiver] for piece in pieces] for receiver in range(size)],
        [[shapes[number][rank] for number in owned[owner]] for owner in range(size)],
        parts[0],
        group,
    )
    own = {n: returned[o][place] for o in range(size) for place, n in enumerate(owned[o])}
    return [own[number] for number in range(len(like))]


def _split(tensor: DTensor) -> int:
    split = split_dimension(tensor)
    assert split is not None
    return split


def _part_shapes(tensor: DTensor, size: int) -> list[tuple[int, ...]]:
    """Return the shape of each process's part."""
    split, shape = _split(tensor), list(tensor.shape)
    ends = part_ends(shape[split], size)
    return [(*shape[:split], stop - start, *shape[split + 1 :]) for start, stop in pairwise(ends)]


def _exchanged(
    sent: list[list[Tensor]],
    shapes: list[list[tuple[int, ...]]],
    like: Tensor,
    group: ProcessGroup,
) -> list[list[Tensor]]:
    """Send each process a list of tensors, and return the list that each has sent to this one."""
    out_sizes = [sum(tensor.numel() for tensor in tensors) for tensors in sent]
    numels = [[torch.Size(shape).numel() for shape in of_sender] for of_sender in shapes]
    in_sizes = [sum(of_sender) for of_sender in numels]
    flat = [tensor.flatten() for tensors in sent for tensor in tensors]
    outgoing = torch.cat(flat) if flat else like.new_empty(0)
    incoming = like.new_empty(sum(in_sizes))
    torch.distributed.all_to_all_single(incoming, outgoing, in_sizes, out_sizes, group=group)
    return [
        [part.view(shape) for part, shape in zip(of_sender.split(sizes), own_shapes, strict=True)]
        if sizes
        else []
        for of_sender, sizes, own_shapes in zip(
            incoming.split(in_sizes), numels, shapes, strict=True
        )
    ]
