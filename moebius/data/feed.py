"""Move batches of token ids to the device that trains on them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moebius.data.batches import Batches

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def on_device(tokens: np.ndarray, device: "torch.device") -> "Tensor":
    """Return the token ids as a tensor of the same shape and dtype on `device`.

    On a GPU the call does not wait for the copy to finish. On the CPU the tensor shares the
    array's memory.
    """
    import torch  # here, so that a process that only tokenizes does not spend seconds on it

    return torch.from_numpy(tokens).to(device, non_blocking=True)


@dataclass(frozen=True)
class Feed:
    """Training batches on their way to a device, and the separator between their documents."""

    batches: Batches
    """The global batches of the run, of which this process takes some rows."""
    device: "torch.device"
    """Device that receives the rows."""
    separator: int | None
    """Id of the token with which each document begins, for attention that stays inside a document.
    None if attention may cross documents. Usually `Corpus.separator`."""
    rank: int = 0
    """Number of this process, from 0 to world_size - 1."""
    world_size: int = 1
    """Number of processes that share each global batch."""

    def at(self, first_sequence: int) -> "Tensor":
        """Return this process's rows of a global batch, on the device.

        The batch begins with sequence `first_sequence`, counted from the start of the run. The
        result `tokens_BL` is int64, of shape (rows, seq_len + lookahead), where the processes have
        equally many rows or some of them one more. Raises ConfigError if there are more processes
        than sequences, and DataError if the shards are damaged.
        """
        return on_device(self.batches.at(first_sequence, self.rank, self.world_size), self.device)
