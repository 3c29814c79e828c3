"""Attention by flex, compared with torch's own: compiled on a GPU, not compiled on a CPU.

torch's flex_attention has no backward pass on CPUs.
"""

from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from moebius.model.attention import attend_expanded, attention_backend, dense_mask
from tests.model.test_attention import gradients, qkv
from tests.model.tiny import B, G, N

DOCUMENTS_CASES = {
    "one": [[256], [256]],
    "at a block's border": [[128, 128], [128, 128]],
    "anywhere": [[3, 197, 56], [255, 1]],
    "many": [[1] * 256, [2] * 128],
}


@pytest.fixture
def flex(monkeypatch) -> ModuleType:
    """The module without the compiler, which takes many seconds and has no kernel for CPUs."""
    from torch.nn.attention import flex_attention

    from moebius.model import flex

    monkeypatch.setattr(flex, "_compiled_flex", flex_attention.flex_attention)
    monkeypatch.setattr(flex, "_compiled_block_mask", flex_attention.create_block_mask)
    return flex


def documents(lengths_of_rows: list[list[int]]) -> Tensor:
    """Return document_BS with documents of these lengths, numbered from 7."""
    return torch.stack(
        [
            torch.arange(7, 7 + len(lengths)).repeat_interleave(torch.tensor(lengths))
            for lengths in lengths_of_rows
        ]
    )


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("case", DOCUMENTS_CASES)
@pytest.mark.parametrize("length", [256, 200, 128, 100])
def test_documents_are_kept_apart_as_by_the_dense_mask(flex, case, length):
    document_BS = documents(DOCUMENTS_CASES[case])[:, :length]
    q_BNSH, k_BGSH, v_BGSH = (tensor.detach() for tensor in qkv(length, torch.float32, "cpu"))
    expected = attend_expanded(q_BNSH, k_BGSH, v_BGSH, dense_mask(document_BS))
    ours = flex.attend_flex(q_BNSH, k_BGSH, v_BGSH, flex.block_mask(document_BS))
    torch.testing.assert_close(ours, expected, rtol=0, atol=2e-6)


def test_without_documents_it_is_plain_causal_attention(flex, monkeypatch):
    monkeypatch.setattr(flex, "_compiled_flex", None)
    q_BNSH, k_BGSH, v_BGSH = qkv(130, torch.float32, "cpu")
    assert flex.block_mask(None) is None
    ours = flex.attend_flex(q_BNSH, k_BGSH, v_BGSH, None)
    one_document = dense_mask(torch.zeros(B, 130, dtype=torch.int64))
    expected = attend_expanded(q_BNSH, k_BGSH, v_BGSH, one_document)
    torch.testing.assert_close(ours, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("lengths", "computed"),
    [
        ([300], [[1, 0, 0], [1, 1, 0], [1, 1, 1]]),
        ([128, 172], [[1, 0, 0], [0, 1, 0], [0, 1, 1]]),
        ([129, 171], [[1, 0, 0], [1, 1, 0], [0, 1, 1]]),
        ([100, 156, 44], [[1, 0, 0], [1, 1, 0], [0, 0, 1]]),
    ],
    ids=str,
)
def test_blocks_that_are_hidden_completely_are_not_computed(flex, lengths, computed):
    mask = flex.block_mask(documents([lengths, [300]]))
    assert mask.to_dense()[0, 0].tolist() == computed
    assert mask.to_dense()[1, 0].tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]


def test_kv_heads_are_not_copied(flex, monkeypatch):
    heads: list[int] = []

    def noted(*qkv: Tensor, **settings: Any) -> Tensor:
        heads.extend(tensor.shape[1] for tensor in qkv)
        return qkv[0]

    monkeypatch.setattr(flex, "_compiled_flex", noted)
    mask = flex.block_mask(documents(DOCUMENTS_CASES["anywhere"]))
    flex.attend_flex(*qkv(256, torch.float32, "cpu"), mask)
    assert heads == [N, G, G]


def test_it_is_found_by_its_name(flex):
    backend = attention_backend("flex")
    assert (backend.attend, backend.mask) == (flex.attend_flex, flex.block_mask)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("length", [200, 256, 100])
@pytest.mark.parametrize("has_documents", [False, True])
def test_compiled_it_is_expanded_attention(dtype, length, has_documents):
    from moebius.model.flex import attend_flex, block_mask

    document_BS = None
    if has_documents:
        ends = torch.rand(B, length, generator=torch.Generator().manual_seed(0)) < 0.03
        document_BS = ends.cumsum(dim=1).cuda()
        assert document_BS.max() > 1
    q_BNSH, k_BGSH, v_BGSH = qkv(length, dtype, "cuda", head_dim=32)
    upstream_BNSH = torch.randn_like(q_BNSH)
    mask = None if document_BS is None else dense_mask(document_BS)
    expanded = attend_expanded(q_BNSH, k_BGSH, v_BGSH, mask)
    flex = attend_flex(q_BNSH, k_BGSH, v_BGSH, block_mask(document_BS))
    allowed = 2e-2 if dtype == torch.bfloat16 else 1e-4
    inputs = (q_BNSH, k_BGSH, v_BGSH)
    ours, expected = (gradients(out, inputs, upstream_BNSH) for out in (flex, expanded))
    for values, expected_values in zip((flex, *ours), (expanded, *expected), strict=True):
        assert values.dtype == dtype
        difference = (values - expected_values).float().norm()
        assert difference < allowed * expected_values.float().norm()
