"""The LM head and its loss: from hidden states to nats, with all logits at once or part by part."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from moebius.model.loss import IGNORED, cross_entropy

Part = Callable[..., tuple[Tensor, Tensor | None]]


def part_of_loss(
    hidden_TD: Tensor, weight_VD: Tensor, bias_V: Tensor, target_T: Tensor, counted: Tensor,
    weight_grad_VD: Tensor | None, bias_grad_V: Tensor | None,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Of `counted` tokens' mean loss the part of these, and its gradient by their hidden states. Those by weight and bias are
    added to what is there of them; without either there are no gradients."""
    logits_TV = F.linear(hidden_TD, weight_VD, bias_V)
    logits = logits_TV.float()
    is_counted_T1 = (target_T != IGNORED)[:, None]
    index_T1 = target_T.clamp(min=0)[:, None]
    log_probs_TV = logits - logits.logsumexp(dim=-1, keepdim=True)
    loss = -(log_probs_TV.gather(1, index_T1) * is_counted_T1).sum() / counted
    if weight_grad_VD is None or bias_grad_V is None:
        return loss, None
    ids_V = torch.arange(logits.shape[1], device=logits.device)
    grad_TV = (log_probs_TV.exp() - (ids_V == index_T1).float()) * (is_counted_T1 / counted)
    grad_TV = grad_TV.type_as(logits_TV)
    weight_grad_VD += grad_TV.T @ hidden_TD
    bias_grad_V += grad_TV.sum(dim=0, dtype=torch.float32)
    return loss, grad_TV @ weight_VD


def head_cross_entropy(
    hidden_BSD: Tensor, weight_VD: Tensor, target_BS: Tensor, bias_V: Tensor | None = None, chunks: int = 1,
    part: Part = part_of_loss,
) -> Tensor:  # fmt: skip
    """Mean cross-entropy of the logits hidden @ weight.T + bias; targets of IGNORED do not count.

    The bias is inside the product: added to its result, a float32 bias would make float32 logits and gradients of them. With
    `chunks` only one part of the logits is there at a time: its gradient is taken at once, in the forward pass, as Liger
    Kernel does (Hsu et al. 2024, arXiv 2410.10989). The products are the same ones; none is computed twice. part:
    part_of_loss, compiled or not: of all parts as one program the compiler keeps every part's products until the end.
    """
    if chunks == 1:
        return cross_entropy(F.linear(hidden_BSD, weight_VD, bias_V), target_BS)
    kind = hidden_BSD.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden_BSD.dtype
    hidden_TD, target_T = hidden_BSD.flatten(0, 1).to(dtype), target_BS.flatten()
    bias_V = weight_VD.new_zeros(len(weight_VD)) if bias_V is None else bias_V
    return _InChunks.apply(hidden_TD, weight_VD.to(dtype), bias_V.to(dtype), target_T, chunks, part)  # pyright: ignore[reportReturnType]


class _InChunks(torch.autograd.Function):
    """Loss and gradients of one part of the tokens after the other."""

    @staticmethod
    def forward(ctx, hidden_TD: Tensor, weight_VD: Tensor, bias_V: Tensor, target_T: Tensor, chunks: int, part: Part) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        counted = (target_T != IGNORED).sum()
        loss = hidden_TD.new_zeros((), dtype=torch.float32)
        wanted = any(ctx.needs_input_grad)
        weight_grad_VD, bias_grad_V = (
            torch.zeros_like(each, dtype=torch.float32) if wanted else None for each in (weight_VD, bias_V)
        )
        hidden_grads = []
        for part_TD, part_T in zip(hidden_TD.chunk(chunks), target_T.chunk(chunks), strict=True):
            part_loss, hidden_grad_TD = part(part_TD, weight_VD, bias_V, part_T, counted, weight_grad_VD, bias_grad_V)
            loss += part_loss
            hidden_grads.append(hidden_grad_TD)
        if weight_grad_VD is not None and bias_grad_V is not None:
            ctx.save_for_backward(torch.cat(hidden_grads), weight_grad_VD.type_as(weight_VD), bias_grad_V.type_as(bias_V))
        return loss

    @staticmethod
    def backward(ctx, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        hidden_TD, weight_VD, bias_V = (each * grad.type_as(each) for each in ctx.saved_tensors)
        return hidden_TD, weight_VD, bias_V, None, None, None
