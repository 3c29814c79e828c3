"""Attention in blocks of queries, compared with torch's attention and the dense mask."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from moebius.config import ParallelConfig
from moebius.model import documents
from moebius.model.attention import (
    attend_expanded,
    attend_native,
    dense_mask,
    documents_or_mask,
)
from moebius.model.documents import MASK_BLOCK, attend_in_blocks
from moebius.model.transformer import seeded
from moebius.parallel.layout import lay_out
from tests.model.test_attention import G, N, gradients, qkv
from tests.model.tiny import B, tiny

CASES = {
    "short documents": lambda S: torch.arange(S).div(7, rounding_mode="floor").expand(B, S),
    "one document": lambda S: torch.zeros(B, S, dtype=torch.int64),
    "documents of one token": lambda S: torch.arange(S).expand(B, S),
    "one begins in the middle of a block": lambda S: (
        (torch.arange(S) >= S // 3).long().expand(B, S)
    ),
    "each sequence has its own": lambda S: torch.stack(
        [(torch.arange(S) >= (b + 1) * S // (B + 1)).long() + 5 for b in range(B)]
    ),
    "a document comes back": lambda S: (
        torch.arange(S).div(3, rounding_mode="floor").expand(B, S) % 2
    ),
    "numbers fall": lambda S: -torch.arange(S).div(11, rounding_mode="floor").expand(B, S),
}


@pytest.mark.parametrize("length", [17, 64, 65, 127])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("attend", [attend_native, attend_expanded])
def test_outputs_and_gradients_are_those_of_the_dense_mask(attend, case, length, monkeypatch):
    monkeypatch.setattr(documents, "MASK_BLOCK", 16)
    document_BS = CASES[case](length)
    inputs = qkv(length, torch.float64, "cpu")
    expected = attend_expanded(*inputs, dense_mask(document_BS))
    out_BNSH = attend(*inputs, document_BS)
    torch.testing.assert_close(out_BNSH, expected, rtol=0, atol=1e-12)
    upstream = torch.randn_like(out_BNSH)
    ours, theirs = (gradients(out, inputs, upstream) for out in (out_BNSH, expected))
    for gradient, expected_gradient in zip(ours, theirs, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=1e-12)


class Largest(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that any operator returns."""

    size = 0
    operators = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # pyright: ignore
        result = func(*args, **(kwargs or {}))
        self.operators += "scaled_dot_product" in str(func)
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self.size = max(self.size, tensor.numel())
        return result


def test_32k_tokens_take_memory_that_is_linear_in_their_number():
    """No tensor is larger than the queries, or a mask of one block; nothing is kept per block."""
    length, head_dim = 1 << 15, 8
    document_BS = (torch.arange(length) // 700).expand(1, length)
    q, k, v = (
        tensor[:1].detach().requires_grad_()
        for tensor in qkv(length, torch.float32, "cpu", head_dim)
    )
    inputs = (q, k, v)
    kept: list[int] = []
    with (
        Largest() as largest,
        torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: kept.append(tensor.numel()) or tensor, lambda tensor: tensor
        ),
    ):
        out = attend_expanded(*inputs, document_BS)
    forward = largest.size
    with largest:
        gradients(out, inputs, torch.ones_like(out))
    # An S x S mask would have a billion elements. With documents of 700 tokens, a block of 256
    # queries sees at most 955 keys.
    assert forward <= largest.size <= max(N * length * head_dim, MASK_BLOCK * 955)
    assert sum(kept) <= (3 * N + 2 * G) * length * head_dim + 2 * length
    assert largest.operators == 3 * length // MASK_BLOCK


@pytest.mark.heavy
def test_a_block_attends_as_the_reference_does_at_32k():
    """The queries at the edges of documents and blocks, computed by hand."""
    length, head_dim, size = 1 << 15, 8, 3_000
    document_BS = (torch.arange(length) // size).expand(1, length)
    q, k, v = (tensor[:1].detach() for tensor in qkv(length, torch.float64, "cpu", head_dim))
    out = attend_expanded(q, k, v, document_BS)
    for position in (0, size - 1, size, 4 * size + MASK_BLOCK, 10 * size - 1, length - 1):
        first = position // size * size
        for head in range(N):
            keys, values = (x[0, head * G // N, first : position + 1] for x in (k, v))
            weights = (keys @ q[0, head, position] / head_dim**0.5).softmax(dim=0)
            torch.testing.assert_close(out[0, head, position], weights @ values)


@pytest.mark.parametrize("length", [MASK_BLOCK, MASK_BLOCK + 1])
def test_only_long_sequences_are_attended_to_in_blocks(length):
    document_BS = torch.zeros(B, length, dtype=torch.int64)
    mask = documents_or_mask(document_BS)
    assert mask is not None and mask.ndim == (4 if length == MASK_BLOCK else 2)
    assert documents_or_mask(None) is None


@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
def test_a_model_trains_with_blocks_as_with_the_dense_mask(checkpointing, monkeypatch):
    monkeypatch.setattr(documents, "MASK_BLOCK", 8)
    tokens_BS = torch.randint(8, (B, 21))
    document_BS = (tokens_BS == 0).long().cumsum(dim=1)
    results = []
    for blocks in (True, False):
        model = seeded(0, tiny())
        lay_out(model, ParallelConfig(activation_checkpointing=checkpointing), torch.device("cpu"))
        mask: Any = (lambda document_BS: document_BS) if blocks else dense_mask
        model.attention_mask = mask
        with torch.autocast("cpu", torch.bfloat16, enabled=checkpointing == "full"):
            logits = model(tokens_BS, document_BS).logits_BSV
        logits.float().square().mean().backward()
        results.append([logits, *(p.grad for p in model.parameters() if p.grad is not None)])
    for ours, expected in zip(*results, strict=True):
        if checkpointing == "full":  # in bfloat16
            assert (ours - expected).norm() <= 0.05 * expected.norm() + 1e-6
        else:
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.heavy
def test_compiled_code_attends_as_eager_code_does(monkeypatch):
    monkeypatch.setattr(documents, "MASK_BLOCK", 16)
    inputs = qkv(50, torch.float32, "cpu")
    document_BS = CASES["short documents"](50)
    compiled = torch.compile(attend_expanded, dynamic=False)
    out, expected = compiled(*inputs, document_BS), attend_expanded(*inputs, document_BS)
    torch.testing.assert_close(out, expected)
    upstream = torch.randn_like(out)
    for ours, theirs in zip(
        gradients(out, inputs, upstream), gradients(expected, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_the_documents_have_no_gradient():
    inputs = qkv(20, torch.float32, "cpu")
    q, k, v = (tensor.detach() for tensor in inputs)
    out = attend_in_blocks(
        q,
        k.repeat_interleave(N // G, 1),
        v.repeat_interleave(N // G, 1),
        torch.zeros(B, 20, dtype=torch.int64),
    )
    assert not out.requires_grad
