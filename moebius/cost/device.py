"""The figures of a GPU that estimates need, and the expert backend that would run on it.

The table of known GPUs is moebius/hardware/devices.py. An estimate takes the figures as an
argument, so it can be made for a GPU that does not exist.
"""

from dataclasses import dataclass

from moebius.config import Config
from moebius.config.expert_backends import EXPERT_BACKENDS

FUSED_EXPERTS, PLAIN_EXPERTS = "triton", "grouped"
"""The expert backends that `auto` chooses between on a GPU, in bfloat16."""
FUSED_EXPERTS_MULTIPLE = 8
"""The fused kernels need a `model.dim` that is a multiple of this."""


@dataclass(frozen=True)
class Device:
    """A GPU, described by the rates that it reaches in practice."""

    name: str
    flops: float
    """FLOP/s of a large bfloat16 matrix product."""
    bytes: float
    """Bytes/s of a large copy in its memory; bytes that are read and written both count."""
    memory: float
    """Bytes of memory that one process can use."""
    link: float
    """Bytes/s that it sends to the other GPUs of its machine while it receives at the same
    rate."""
    network: float
    """Bytes/s that it sends to GPUs in other machines while it receives at the same rate."""
    source: str
    """Where these figures come from, in words that users see."""
    is_hopper: bool = False
    """Whether it is of the Hopper generation, which Moebius's fused expert kernels need."""
    per_machine: int = 8
    """Number of GPUs in one machine."""


def expert_backend_on(config: Config, device: Device) -> str:
    """Return the name of the expert backend that a run in bfloat16 would use on the device.

    The name is a key of `EXPERT_BACKENDS`. The rule is that of moebius/hardware/backends.py,
    applied to a device's figures, so the device need not be present.
    """
    if config.train.expert_dtype in EXPERT_BACKENDS:  # a number format with its own backend
        return config.train.expert_dtype
    can_be_fused = device.is_hopper and config.model.dim % FUSED_EXPERTS_MULTIPLE == 0
    asked = EXPERT_BACKENDS.get(config.parallel.expert_backend)  # None for `auto`
    if asked is None or (asked.is_fused and not can_be_fused):
        return FUSED_EXPERTS if can_be_fused else PLAIN_EXPERTS
    return config.parallel.expert_backend
