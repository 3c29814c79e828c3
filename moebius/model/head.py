"""The LM head and its loss: from hidden states to nats, with all logits at once or part by part."""

import torch
import torch.nn.functional as F
from torch import Tensor

from moebius.model.loss import IGNORED, cross_entropy


def head_cross_entropy(
    hidden_BSD: Tensor, weight_VD: Tensor, target_BS: Tensor, bias_V: Tensor | None = None, chunks: int = 1
) -> Tensor:
    """Mean cross-entropy of the logits hidden @ weight.T + bias; targets of IGNORED do not count.

    The bias is inside the product: added to its result, a float32 bias would make float32 logits and gradients of them. With
    `chunks` only one part of the logits is there at a time: its gradient is taken at once, in the forward pass, as Liger
    Kernel does (Hsu et al. 2024, arXiv 2410.10989). The products are the same ones; none is computed twice.
    """
    if chunks == 1:
        return cross_entropy(F.linear(hidden_BSD, weight_VD, bias_V), target_BS)
    kind = hidden_BSD.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden_BSD.dtype
    hidden_TD, target_T = hidden_BSD.flatten(0, 1).to(dtype), target_BS.flatten()
    bias_V = weight_VD.new_zeros(len(weight_VD)) if bias_V is None else bias_V
    return _InChunks.apply(hidden_TD, weight_VD.to(dtype), bias_V.to(dtype), target_T, chunks)  # pyright: ignore[reportReturnType]


class _InChunks(torch.autograd.Function):
    """Loss and gradients of one part of the tokens after the other."""

    @staticmethod
    def forward(ctx, hidden_TD: Tensor, weight_VD: Tensor, bias_V: Tensor, target_T: Tensor, chunks: int) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        counted = (target_T != IGNORED).sum()
        loss = hidden_TD.new_zeros((), dtype=torch.float32)
        weight_grad_VD = torch.zeros_like(weight_VD, dtype=torch.float32)
        bias_grad_V = torch.zeros_like(bias_V, dtype=torch.float32)
        hidden_grads = []
        for part_TD, part_T in zip(hidden_TD.chunk(chunks), target_T.chunk(chunks), strict=True):
            part_loss, logits_grad_TV = _with_gradient(F.linear(part_TD, weight_VD, bias_V), part_T, counted)
            loss = loss + part_loss
            if any(ctx.needs_input_grad):
                hidden_grads.append(logits_grad_TV @ weight_VD)
                weight_grad_VD = weight_grad_VD + logits_grad_TV.T @ part_TD
                bias_grad_V = bias_grad_V + logits_grad_TV.sum(dim=0, dtype=torch.float32)
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(torch.cat(hidden_grads), weight_grad_VD.type_as(weight_VD), bias_grad_V.type_as(bias_V))
        return loss

    @staticmethod
    def backward(ctx, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        hidden_TD, weight_VD, bias_V = (each * grad.type_as(each) for each in ctx.saved_tensors)
        return hidden_TD, weight_VD, bias_V, None, None


def _with_gradient(logits_TV: Tensor, target_T: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """Of `counted` tokens' mean loss the part of these, and its gradient by the logits, in their dtype."""
    logits = logits_TV.float()
    is_counted_T1 = (target_T != IGNORED)[:, None]
    index_T1 = target_T.clamp(min=0)[:, None]
    log_probs_TV = logits - logits.logsumexp(dim=-1, keepdim=True)
    loss = -(log_probs_TV.gather(1, index_T1) * is_counted_T1).sum() / counted
    ids_V = torch.arange(logits.shape[1], device=logits.device)
    grad_TV = (log_probs_TV.exp() - (ids_V == index_T1).float()) * (is_counted_T1 / counted)
    return loss, grad_TV.type_as(logits_TV)
