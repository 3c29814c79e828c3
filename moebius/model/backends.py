"""Every hardware choice of the model in one place, with the reason said aloud."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from moebius.config import ParallelConfig
from moebius.model.attention import AttentionFunction, attend_expanded, attend_native, dense_mask
from moebius.model.experts import ExpertsFunction, grouped, loop, triton
from moebius.model.float8 import float8, is_emulated

# document_BS -> what `attend` takes as its mask; None stands for one document
MaskFunction = Callable[[Tensor | None], Any]


@dataclass(frozen=True)
class Backends:
    """What a model runs with, and one line for each choice saying what it was and why."""

    run_experts: ExpertsFunction
    attend: AttentionFunction
    mask: MaskFunction
    reasons: tuple[str, ...]
    loss_chunks: int = 1

    @property
    def has_own_kernels(self) -> bool:
        """Whether the experts run in moebius/kernels."""
        return self.run_experts is triton


def choose_backends(
    parallel: ParallelConfig | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    document_masking: bool = True,
    dim: int = 0,
    expert_dtype: str = "auto",
) -> Backends:
    """What runs best on the device, or what the configuration names. dtype: of the matrix products; dim: of the model, which
    only `triton` asks for; expert_dtype: float8 leaves the experts one backend."""
    parallel = parallel or ParallelConfig()
    device = torch.device(device)
    run_experts, experts_reason = (
        _choose_float8(parallel, device) if expert_dtype == "float8" else _choose_experts(parallel, device, dtype, dim)
    )
    attend, mask, attention_reason = _choose_attention(parallel, device, document_masking)
    return Backends(
        run_experts, attend, mask, (f"experts: {experts_reason}", f"attention: {attention_reason}"), parallel.loss_chunks
    )


def is_compiled(parallel: ParallelConfig, device: torch.device) -> bool:
    """Whether the blocks are compiled: on a GPU, unless the configuration says otherwise."""
    return parallel.compile == "on" or (parallel.compile == "auto" and device.type == "cuda")


def _choose_experts(
    parallel: ParallelConfig, device: torch.device, dtype: torch.dtype, dim: int
) -> tuple[ExpertsFunction, str]:
    asked = parallel.expert_backend
    if asked == "triton":
        obstacle = _obstacle_to_triton(device, dim)
        if obstacle is None:
            return triton, "triton (asked for)"
        run, reason = _choose_experts(replace(parallel, expert_backend="auto"), device, dtype, dim)
        return run, f"{reason.removesuffix(')')}; triton was asked for, but {obstacle})"
    if asked == "loop":
        return loop, "loop (asked for)"
    if asked == "auto" and dtype == torch.bfloat16 and _obstacle_to_triton(device, dim) is None:
        return triton, "triton (our own kernels: 1.15 to 1.3 times as fast as the best of torch's, docs/log.md)"
    if device.type == "cuda" and dtype != torch.bfloat16:
        instead = "; grouped was asked for" if asked == "grouped" else ""
        return loop, f"loop (torch's grouped product wants bfloat16 on a GPU{instead})"
    if asked == "grouped" and dtype != torch.bfloat16 and is_compiled(parallel, device):
        return loop, "loop (torch compiles its grouped product for bfloat16 alone; grouped was asked for)"
    if device.type == "cpu" and asked == "auto":
        return loop, "loop (a CPU runs it 1.2 times as fast as grouped, docs/log.md)"
    return grouped, "grouped (asked for)" if asked == "grouped" else "grouped (one product per matrix, no host synchronisation)"


def _choose_float8(parallel: ParallelConfig, device: torch.device) -> tuple[ExpertsFunction, str]:
    instead = "" if parallel.expert_backend == "auto" else f"; {parallel.expert_backend} was asked for"
    if is_emulated(device):
        return float8, f"float8 (emulated, and slow: its products need a Hopper GPU{instead})"
    return float8, f"float8 (train.expert_dtype; weight gradients in bfloat16{instead})"


def _obstacle_to_triton(device: torch.device, dim: int) -> str | None:
    if device.type != "cuda":
        return "needs a GPU"
    if torch.cuda.is_available() and torch.cuda.get_device_capability(device)[0] != 9:
        return "its kernels are for Hopper GPUs"
    if dim % 8:
        return f"wants model.dim a multiple of 8, not {dim}"
    return "is not installed" if find_spec("triton") is None else None


def _choose_attention(
    parallel: ParallelConfig, device: torch.device, document_masking: bool
) -> tuple[AttentionFunction, MaskFunction, str]:
    on_gpu = device.type == "cuda"
    wants_flex = parallel.attention_backend == "flex"
    if on_gpu and (wants_flex or (parallel.attention_backend == "auto" and document_masking and is_compiled(parallel, device))):
        from moebius.model.flex import attend_flex, block_mask

        reason = "asked for" if wants_flex else "compiled; skips the blocks that document masking hides; native GQA"
        return attend_flex, block_mask, f"flex ({reason})"
    instead = "; flex was asked for, but needs a GPU" if wants_flex else ""
    if on_gpu and not document_masking:
        return attend_native, _dense_mask, "sdpa, native GQA"
    why = "no fused kernel takes a mask and native GQA at once" if on_gpu else "measured faster on CPUs than native GQA"
    return attend_expanded, _dense_mask, f"sdpa, KV heads expanded ({why}{instead})"


def _dense_mask(document_BS: Tensor | None) -> Tensor | None:
    """None is plain causal attention."""
    return None if document_BS is None else dense_mask(document_BS)
