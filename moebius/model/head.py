"""The LM head and its loss, computed from all logits at once or from one part after another."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from moebius.model.loss import IGNORED, cross_entropy, wide

MOST_LOGITS = 2**26
"""Number of logits that are computed at once without a gradient: 256 MB in float32."""
Part = Callable[..., tuple[Tensor, Tensor | None]]
"""A function with the signature of `part_of_loss`, compiled or not."""


def part_of_loss(
    hidden_TD: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor,
    target_T: Tensor,
    num_targets: Tensor,
    weight_grad_VD: Tensor | None,
    bias_grad_V: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """Return what these tokens add to the loss, and its gradient with respect to hidden_TD.

    num_targets: what the sum over the tokens is divided by.
    weight_grad_VD, bias_grad_V: tensors to which the gradients of weight and bias are added in
    place. If both are None, no gradients are computed, and the second result is None.
    """
    logits_TV = F.linear(hidden_TD, weight_VD, bias_V)
    logits = wide(logits_TV)
    log_probs_TV = logits - logits.logsumexp(dim=-1, keepdim=True)
    # Refuses a target that is neither IGNORED nor an id, as F.cross_entropy does.
    total = F.nll_loss(log_probs_TV, target_T, ignore_index=IGNORED, reduction="sum")
    if weight_grad_VD is None or bias_grad_V is None:
        return total / num_targets, None
    ids_V = torch.arange(logits.shape[1], device=logits.device)
    is_target_TV = (ids_V == target_T[:, None]).type_as(logits)
    scale_T1 = (target_T != IGNORED)[:, None].type_as(logits) / num_targets
    grad_TV = ((log_probs_TV.exp() - is_target_TV) * scale_T1).type_as(logits_TV)
    weight_grad_VD += grad_TV.T @ hidden_TD
    bias_grad_V += grad_TV.sum(dim=0, dtype=bias_grad_V.dtype)
    return total / num_targets, grad_TV @ weight_VD


def head_cross_entropy(
    hidden_BSD: Tensor,
    weight_VD: Tensor,
    target_BS: Tensor,
    bias_V: Tensor | None = None,
    chunks: int = 1,
    part: Part = part_of_loss,
    num_targets: Tensor | None = None,
) -> Tensor:
    """Return the cross-entropy of the logits hidden @ weight.T + bias, over the targets.

    It is the sum over the targets divided by num_targets, by default the number of targets that
    count. Targets of IGNORED do not count. The bias is added inside the product; adding a float32
    bias to its result would make the logits and their gradients float32.

    With more than one chunk, only one part of the logits exists at a time. The part's gradient is
    computed immediately, in the forward pass, as in Liger Kernel (Hsu et al. 2024, arXiv
    2410.10989), so no product is computed twice. `part` computes one part. It may be compiled, but
    only by itself: in one compiled program, the logits of all parts would be kept until the end.
    """
    if chunks == 1:
        return cross_entropy(F.linear(hidden_BSD, weight_VD, bias_V), target_BS, num_targets)
    if num_targets is None:
        num_targets = (target_BS != IGNORED).sum()
    device = hidden_BSD.device.type
    is_autocast = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if is_autocast else hidden_BSD.dtype
    hidden_TD, target_T = hidden_BSD.flatten(0, 1).to(dtype), target_BS.flatten()
    bias_V = weight_VD.new_zeros(len(weight_VD)) if bias_V is None else bias_V
    return _InChunks.apply(
        hidden_TD,
        weight_VD.to(dtype),
        bias_V.to(dtype),
        target_T,
        num_targets.clamp(min=1),
        chunks,
        part,
    )  # pyright: ignore[reportReturnType]


@torch.no_grad()
def head_token_losses(hidden_BSD: Tensor, weight_VD: Tensor, target_BS: Tensor) -> Tensor:
    """Return nats_BS, the cross-entropy of each target; 0 for targets of IGNORED.

    Only `MOST_LOGITS` of the logits hidden @ weight.T exist at a time.
    """
    size = max(1, MOST_LOGITS // len(weight_VD))
    parts = zip(hidden_BSD.flatten(0, 1).split(size), target_BS.flatten().split(size), strict=True)
    nats = [
        F.cross_entropy(
            wide(F.linear(part_TD, weight_VD)), part_T, ignore_index=IGNORED, reduction="none"
        )
        for part_TD, part_T in parts
    ]
    return torch.cat(nats).view(target_BS.shape)


class _InChunks(torch.autograd.Function):
    """The loss and its gradients, computed from one part of the tokens after another."""

    @staticmethod
    def forward(
        ctx,
        hidden_TD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor,
        target_T: Tensor,
        num_targets: Tensor,
        chunks: int,
        part: Part,
    ) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        dtype = torch.promote_types(hidden_TD.dtype, torch.float32)
        loss = hidden_TD.new_zeros((), dtype=dtype)
        weight_grad_VD = bias_grad_V = None
        if any(ctx.needs_input_grad):
            weight_grad_VD = torch.zeros_like(weight_VD, dtype=dtype)
            bias_grad_V = torch.zeros_like(bias_V, dtype=dtype)
        hidden_grads = []
        chunks = min(chunks, len(target_T))  # `chunk` fails on numbers near 2**63
        for part_TD, part_T in zip(hidden_TD.chunk(chunks), target_T.chunk(chunks), strict=True):
            part_loss, hidden_grad_TD = part(
                part_TD, weight_VD, bias_V, part_T, num_targets, weight_grad_VD, bias_grad_V
            )
            loss += part_loss
            hidden_grads.append(hidden_grad_TD)
        if weight_grad_VD is not None and bias_grad_V is not None:
            ctx.save_for_backward(
                torch.cat(hidden_grads),
                weight_grad_VD.type_as(weight_VD),
                bias_grad_V.type_as(bias_V),
            )
        return loss

    @staticmethod
    def backward(ctx, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        gradients = [gradient * grad.type_as(gradient) for gradient in ctx.saved_tensors]
        return *gradients, None, None, None, None
