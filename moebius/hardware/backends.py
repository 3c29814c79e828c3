"""Choose the implementation of the experts and of attention for a device, and say why.

Every choice in the model that depends on the hardware is made here, once, and comes with a line
that says what was chosen and why. The choices are names; the implementations register under the
same names in moebius/moe/backends.py and moebius/model/attention.py.
"""

from dataclasses import dataclass, replace
from importlib.util import find_spec

import torch

from moebius.config import Config, ParallelConfig
from moebius.config.attention import ATTENTION
from moebius.config.expert_backends import EXPERT_BACKENDS, ExpertBackendRecord
from moebius.hardware.precision import matmul_dtype

HAS_TRITON = find_spec("triton") is not None
HOPPER = 9  # the major compute capability that our kernels and torch's FP8 products are made for


@dataclass(frozen=True)
class Backends:
    """The implementations that a model runs with."""

    experts: str
    """Name of the expert backend, a key of `EXPERT_BACKENDS`."""
    attention: str
    """Name of the attention backend, a key of `ATTENTION`."""
    reasons: tuple[str, ...] = ()
    """One line for each choice: what was chosen and why."""
    loss_chunks: int = 1
    """Number of parts in which the LM head's loss is computed."""

    @property
    def expert_record(self) -> ExpertBackendRecord:
        """What is known about the expert backend."""
        return EXPERT_BACKENDS[self.experts]


def backends_for(config: Config, device: torch.device) -> Backends:
    """Return the backends that run a configuration's model on the device."""
    return choose_backends(
        config.parallel,
        device,
        matmul_dtype(config.train, device),
        config.data.document_masking,
        config.model.dim,
        config.train.expert_dtype,
    )


def choose_backends(
    parallel: ParallelConfig | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    document_masking: bool = True,
    dim: int = 0,
    expert_dtype: str = "auto",
) -> Backends:
    """Return the backends that the configuration names or, on `auto`, the fastest for the device.

    dtype is that of the matrix products. dim is the model's width, which only the `triton` expert
    backend depends on. With expert_dtype "float8" there is only one expert backend.
    """
    parallel = parallel or ParallelConfig()
    device = torch.device(device)
    if expert_dtype == "float8":
        experts, experts_reason = _choose_float8(parallel, device)
    else:
        experts, experts_reason = _choose_experts(parallel, device, dtype, dim)
    attention, attention_reason = _choose_attention(parallel, device, document_masking)
    reasons = (
        f"expert backend: {experts} ({experts_reason})",
        f"attention: {ATTENTION[attention].description} ({attention_reason})",
    )
    return Backends(experts, attention, reasons, parallel.loss_chunks)


def is_compiled(parallel: ParallelConfig, device: torch.device) -> bool:
    """Return whether the blocks are compiled; on `auto`, they are on a GPU."""
    return parallel.compile == "on" or (parallel.compile == "auto" and device.type == "cuda")


def is_hopper(device: torch.device) -> bool:
    """Return whether the device is a GPU of the Hopper generation (H100, H200)."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == HOPPER


def runs_router_kernels(tensor: torch.Tensor) -> bool:
    """Return whether routing and its statistics run as our own kernels: on a GPU with Triton."""
    return tensor.is_cuda and HAS_TRITON


def _choose_experts(
    parallel: ParallelConfig, device: torch.device, dtype: torch.dtype, dim: int
) -> tuple[str, str]:
    """Return the expert backend's name and the reason."""
    asked = parallel.expert_backend
    if asked == "triton":
        obstacle = _obstacle_to_triton(device, dim)
        if obstacle is None:
            return "triton", "asked for"
        automatic = replace(parallel, expert_backend="auto")
        name, reason = _choose_experts(automatic, device, dtype, dim)
        return name, f"{reason}; triton was asked for, but {obstacle}"
    if asked == "loop":
        return "loop", "asked for"
    if asked == "auto" and dtype == torch.bfloat16 and _obstacle_to_triton(device, dim) is None:
        return "triton", "our own kernels: 1.15 to 1.3 times as fast as the best of torch's"
    if device.type == "cuda" and dtype != torch.bfloat16:
        instead = "; grouped was asked for" if asked == "grouped" else ""
        return "loop", f"torch's grouped product needs bfloat16 on a GPU{instead}"
    if asked == "grouped" and dtype != torch.bfloat16 and is_compiled(parallel, device):
        return (
            "loop",
            "torch compiles its grouped product for bfloat16 only; grouped was asked for",
        )
    if device.type == "cpu" and asked == "auto":
        return "loop", "1.2 times as fast as grouped on a CPU"
    if asked == "grouped":
        return "grouped", "asked for"
    return "grouped", "one product per matrix, no host synchronization"


def _choose_float8(parallel: ParallelConfig, device: torch.device) -> tuple[str, str]:
    """Return the FP8 expert backend's name and how it runs on this device."""
    asked = parallel.expert_backend
    instead = "" if asked == "auto" else f"; {asked} was asked for"
    if not is_hopper(device):
        return "float8", f"emulated, and slow: its products need a Hopper GPU{instead}"
    return "float8", f"train.expert_dtype; weight gradients in bfloat16{instead}"


def _obstacle_to_triton(device: torch.device, dim: int) -> str | None:
    """Return why our own expert kernels cannot run here, or None if they can."""
    if device.type != "cuda":
        return "it needs a GPU"
    if torch.cuda.is_available() and not is_hopper(device):
        return "its kernels are for Hopper GPUs"
    if dim % 8:
        return f"it needs model.dim to be a multiple of 8, not {dim}"
    return None if HAS_TRITON else "triton is not installed"


def _choose_attention(
    parallel: ParallelConfig, device: torch.device, document_masking: bool
) -> tuple[str, str]:
    """Return the attention backend's name and the reason."""
    asked, on_gpu = parallel.attention_backend, device.type == "cuda"
    if on_gpu and asked == "flex":
        return "flex", "asked for"
    if on_gpu and asked == "auto" and document_masking and is_compiled(parallel, device):
        return "flex", "compiled; skips the blocks that document masking hides; native GQA"
    if on_gpu and not document_masking:
        return "sdpa_native", "reads each KV head in place for all its query heads"
    instead = "; flex was asked for, but needs a GPU" if asked == "flex" else ""
    if on_gpu:
        reason = "no fused kernel takes a mask and native GQA at once"
    else:
        reason = "faster than native GQA on a CPU"
    return "sdpa_expanded", f"{reason}{instead}"
