"""What is known about each way of running the experts, without torch.

`parallel.expert_backend` and `train.expert_dtype` name a record here. The implementation
registers under the same name in moebius/moe/backends.py, which is imported when a model is built.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class ExpertBackendRecord:
    """The properties of one expert backend that estimates and profiles depend on."""

    is_fused: bool = False
    """Activation and gate run inside the kernels of the matrix products, so neither the
    activation nor the experts' results are kept for backward."""
    has_static_rows: bool = True
    """A row is moved for every expert that a token could have, even if the token does not use
    it."""
    kept_operators: tuple[str, ...] = ()
    """Names of the operators whose results selective checkpointing keeps for backward."""


EXPERT_BACKENDS: dict[str, ExpertBackendRecord] = {
    "loop": ExpertBackendRecord(has_static_rows=False),
    "grouped": ExpertBackendRecord(kept_operators=("aten._grouped_mm",)),
    "triton": ExpertBackendRecord(is_fused=True, kept_operators=("moebius.experts_forward",)),
    "float8": ExpertBackendRecord(kept_operators=("moebius.float8_product",)),
}
