"""What memory and time estimates need to know about each optimizer, without torch.

`train.optimizer` names a record here; moebius/train/optimizer.py builds the optimizer itself.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class OptimizerRecord:
    """The state that an optimizer keeps for each parameter, in float32 numbers."""

    moments: int = 2
    """Numbers per parameter outside of the hidden matrices."""
    hidden_moments: int = 2
    """Numbers per parameter of the hidden matrices: attention, MLPs and experts."""


OPTIMIZERS: dict[str, OptimizerRecord] = {
    "adamw": OptimizerRecord(),
    "muon": OptimizerRecord(hidden_moments=1),
}
