"""Attention, compared with a softmax written out as a loop over sequences, heads and queries."""

import math

import pytest
import torch
from torch import Tensor

from moebius.config import ModelConfig
from moebius.config.attention import ATTENTION
from moebius.model import attention
from moebius.model.attention import (
    Attention,
    attend_expanded,
    attend_native,
    attention_backend,
    dense_mask,
)
from moebius.model.rope import rotation
from tests.model.test_rope import rotated
from tests.model.tiny import B, D, G, H, N, S, tiny

DOCUMENTS = torch.tensor([[0, 0, 0, 1, 1, 2, 2], [4, 5, 5, 5, 5, 5, 6]])
Weights = dict[str, Tensor]


def normed(x: Tensor, weight_H: Tensor, epsilon: float) -> Tensor:
    return x / (x.square().sum(dim=-1, keepdim=True) / x.shape[-1] + epsilon).sqrt() * weight_H


def naive_attention(
    x_BSD: Tensor, weights: Weights, config: ModelConfig, document_BS: Tensor | None
) -> Tensor:
    """Return out_BSD, computed one query at a time, without any code of the implementation."""
    H = config.head_width
    group = config.num_heads // config.num_kv_heads

    def head(name: str, index: int, kv_head: int, x_SD: Tensor) -> Tensor:
        head_SH = x_SD @ weights[f"{name}.weight"][index * H : (index + 1) * H].T
        if config.qk_norm and name != "value":
            head_SH = normed(head_SH, weights[f"{name}_norm.weight"], config.norm_eps)
        is_rotated = name != "value" and kv_head < config.rotary_kv_heads
        return rotated(head_SH, config.rotary_dims, config.rope_theta) if is_rotated else head_SH

    rows = []
    for b, x_SD in enumerate(x_BSD):
        heads = []
        for n in range(config.num_heads):
            q_SH = head("query", n, n // group, x_SD)
            k_SH, v_SH = (head(name, n // group, n // group, x_SD) for name in ("key", "value"))
            queries = []
            for t in range(x_SD.shape[0]):
                visible = [
                    s
                    for s in range(t + 1)
                    if document_BS is None or document_BS[b, s] == document_BS[b, t]
                ]
                weight = torch.stack([q_SH[t] @ k_SH[s] / math.sqrt(H) for s in visible]).exp()
                pairs = zip(weight / weight.sum(), visible, strict=True)
                queries.append(sum(share * v_SH[s] for share, s in pairs))
            heads.append(torch.stack(queries))  # pyright: ignore[reportArgumentType]
        rows.append(torch.cat(heads, dim=-1) @ weights["output.weight"].T)
    return torch.stack(rows)


def test_every_record_has_a_backend():
    assert attention._PLACES.keys() == ATTENTION.keys()
    assert attention_backend("sdpa_native").attend is attend_native
    assert attention_backend("sdpa_expanded").attend is attend_expanded
    for name in ATTENTION:
        assert attention_backend(name).mask(None) is None
    with pytest.raises(KeyError, match="fastest"):
        attention_backend("fastest")


@pytest.mark.parametrize("attend", [attend_native, attend_expanded])
@pytest.mark.parametrize("document_BS", [None, DOCUMENTS], ids=["one document", "documents"])
@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize(
    "rope", [{"rope_fraction": 0.5}, {"rope_scope": "heads"}], ids=["dims", "heads"]
)
def test_the_layer_is_a_naive_softmax(attend, document_BS, qk_norm, rope):
    config = tiny(qk_norm=qk_norm, **rope)
    module = Attention(config, attend).double()
    for parameter in module.parameters():
        # This includes the norms' weights. They are large enough for scores to differ by token.
        torch.nn.init.normal_(parameter, std=0.4)
    x_BSD = torch.randn(B, S, D, dtype=torch.float64, requires_grad=True)
    upstream_BSD = torch.randn(B, S, D, dtype=torch.float64)
    mask = None if document_BS is None else dense_mask(document_BS)
    out_BSD = module(x_BSD, rotation(S, config, x_BSD.device), mask)
    expected_BSD = naive_attention(x_BSD, dict(module.named_parameters()), config, document_BS)
    torch.testing.assert_close(out_BSD, expected_BSD, rtol=0, atol=1e-6)
    inputs = {"x": x_BSD, **dict(module.named_parameters())}
    assert len(inputs) == (7 if qk_norm else 5)
    ours = torch.autograd.grad(out_BSD, list(inputs.values()), upstream_BSD)
    expected = torch.autograd.grad(expected_BSD, list(inputs.values()), upstream_BSD)
    for name, gradient, expected_gradient in zip(inputs, ours, expected, strict=True):
        torch.testing.assert_close(
            gradient,
            expected_gradient,
            rtol=1e-6,
            atol=1e-6,
            msg=lambda text, name=name: f"{name}: {text}",
        )


@pytest.mark.parametrize("document_BS", [None, DOCUMENTS], ids=["one document", "documents"])
def test_native_is_expanded(document_BS):
    mask = None if document_BS is None else dense_mask(document_BS)
    q_BNSH, k_BGSH, v_BGSH = qkv(S, torch.float64, "cpu")
    upstream_BNSH = torch.randn_like(q_BNSH)
    native, expanded = (
        attend(q_BNSH, k_BGSH, v_BGSH, mask) for attend in (attend_native, attend_expanded)
    )
    torch.testing.assert_close(native, expanded, rtol=0, atol=1e-12)
    inputs = (q_BNSH, k_BGSH, v_BGSH)
    ours, expected = (gradients(out, inputs, upstream_BNSH) for out in (native, expanded))
    for gradient, expected_gradient in zip(ours, expected, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=1e-12)


def test_the_mask_is_causal_and_keeps_documents_apart():
    mask_B1SS = dense_mask(DOCUMENTS)
    assert mask_B1SS.shape == (B, 1, S, S) and mask_B1SS.dtype == torch.bool
    for b in range(B):
        for t in range(S):
            for s in range(S):
                assert mask_B1SS[b, 0, t, s] == (s <= t and DOCUMENTS[b, s] == DOCUMENTS[b, t])


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("attend", [attend_native, attend_expanded])
def test_under_autocast_the_products_are_bfloat16(attend, qk_norm):
    config = tiny(qk_norm=qk_norm)
    module = Attention(config, attend)
    x_BSD, angles = torch.randn(B, S, D), rotation(S, config, torch.device("cpu"))
    with torch.autocast("cpu", torch.bfloat16):
        out_BSD = module(x_BSD, angles, dense_mask(DOCUMENTS))
    assert out_BSD.dtype == torch.bfloat16
    expected_BSD = module(x_BSD, angles, dense_mask(DOCUMENTS))
    assert (out_BSD - expected_BSD).norm() < 0.02 * expected_BSD.norm()


def qkv(
    length: int, dtype: torch.dtype, device: str, head_dim: int = H
) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    q_BNSH, k_BGSH, v_BGSH = (
        torch.randn(B, heads, length, head_dim, dtype=dtype, device=device, requires_grad=True)
        for heads in (N, G, G)
    )
    return q_BNSH, k_BGSH, v_BGSH


def gradients(out: Tensor, inputs: tuple[Tensor, ...], upstream: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(out, inputs, upstream)
