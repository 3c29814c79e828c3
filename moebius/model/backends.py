"""Every hardware choice of the model in one place, with the reason said aloud."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moebius.config import ParallelConfig
from moebius.model.attention import AttentionFunction, attend_expanded, attend_flex, attend_native, block_mask, dense_mask
from moebius.model.experts import ExpertsFunction, grouped, loop


@dataclass(frozen=True)
class Backends:
    """The functions a model runs with, and one line for each saying what was chosen and why."""

    run_experts: ExpertsFunction
    attend: AttentionFunction
    reasons: tuple[str, ...]

    def mask(self, document_BS: Tensor | None, shape: torch.Size) -> Any:
        """What `attend` wants as its mask; None is plain causal attention."""
        if self.attend is attend_flex:
            return block_mask(torch.zeros(shape, dtype=torch.long) if document_BS is None else document_BS)
        return None if document_BS is None else dense_mask(document_BS)


def choose_backends(
    parallel: ParallelConfig | None = None, device: torch.device | str = "cpu", document_masking: bool = True
) -> Backends:
    """What runs best on the device, or what the configuration names."""
    parallel = parallel or ParallelConfig()
    on_gpu = torch.device(device).type == "cuda"
    run_experts, experts_reason = _choose_experts(parallel, on_gpu)
    attend, attention_reason = _choose_attention(parallel, on_gpu, document_masking)
    return Backends(run_experts, attend, (f"experts: {experts_reason}", f"attention: {attention_reason}"))


def _choose_experts(parallel: ParallelConfig, on_gpu: bool) -> tuple[ExpertsFunction, str]:
    if parallel.expert_backend == "loop":
        return loop, "loop (asked for)"
    if parallel.expert_backend == "grouped":
        return grouped, "grouped (asked for)"
    return grouped, "grouped (one grouped product per matrix, no host synchronisation)"


def _choose_attention(parallel: ParallelConfig, on_gpu: bool, document_masking: bool) -> tuple[AttentionFunction, str]:
    if parallel.attention_backend == "flex" and not on_gpu:
        return attend_expanded, "sdpa with expanded KV heads (flex was asked for, but needs a GPU)"
    if parallel.attention_backend == "flex":
        return attend_flex, "flex (asked for)"
    if parallel.attention_backend == "auto" and on_gpu and document_masking:
        return attend_flex, "flex (skips the blocks that document masking hides, native GQA)"
    if on_gpu and document_masking:
        return attend_expanded, "sdpa with expanded KV heads (no fused kernel takes a mask and native GQA)"
    if on_gpu:
        return attend_native, "sdpa, native GQA"
    return attend_expanded, "sdpa with expanded KV heads (the CPU kernels have no native GQA)"
