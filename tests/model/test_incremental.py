"""Token by token with a KV cache, a model gives the logits of its forward pass."""

from typing import Any

import pytest
import torch
from torch import Tensor

from moebius.hardware.backends import Backends
from moebius.model.incremental import fill, new_cache, step
from moebius.model.loss import documents
from moebius.model.transformer import Transformer
from moebius.moe.few_tokens import use_few_or_many
from tests.model.tiny import ROUTERS, B, E, S, V, decided, random_tokens, tiny

SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "part of the dimensions": {"rope_fraction": 0.5, "use_mtp": True},
    "part of the heads": {"rope_scope": "heads", "rope_fraction": 0.66},
    "normalized": {"qk_norm": True, "tie_embeddings": True},
    "one KV head": {"num_kv_heads": 1, "qk_norm": True, "base_expansion": 1.0},
    "dense layer": {"num_experts": (0, E), "base_expansion": 1.0, "residual_mix": "learned"},
}


def model_of(router: str, shape: str, backend: str = "loop") -> Transformer:
    """Return a model in float64 that drops no tokens."""
    options: dict[str, Any] = {**ROUTERS[router], "eval_capacity_factor": float(E)}
    model = decided(tiny(**{**options, **SHAPES[shape]})).eval()
    other = Transformer(model.config, Backends(backend, "sdpa_expanded")).double().eval()
    other.load_state_dict(model.state_dict())
    return other


def logits(model: Transformer, hidden_BSD: Tensor) -> Tensor:
    return model.lm_head(model.norm(hidden_BSD))


@torch.no_grad()
def by_cache(
    model: Transformer, tokens_BS: Tensor, first: list[int], width: int, document_BS: Any = None
) -> Tensor:
    """Return logits_BSV: `first` tokens of each sequence at once, and then `width` at a time."""
    cache = new_cache(model, len(tokens_BS), S + width)
    longest = max(first)
    result = torch.full((*tokens_BS.shape, V), torch.nan, dtype=torch.double)
    beginning = None if document_BS is None else document_BS[:, :longest]
    filled_BSV = logits(model, fill(model, cache, tokens_BS[:, :longest], beginning))
    for row, length in enumerate(first):
        result[row, :length] = filled_BSV[row, :length].double()
    row_B1, position_B = torch.arange(len(tokens_BS))[:, None], torch.tensor(first)
    while result.isnan().any():
        position_BS = position_B[:, None] + torch.arange(width)
        inside_BS = position_BS.clamp(max=S - 1)
        own = None if document_BS is None else document_BS[row_B1, inside_BS]
        hidden = step(model, cache, tokens_BS[row_B1, inside_BS], position_BS, own)
        is_new = position_BS < S
        result[row_B1.expand_as(position_BS)[is_new], position_BS[is_new]] = logits(
            model, hidden
        ).double()[is_new]
        position_B = (position_B + width).clamp(max=S)
    return result


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("router", ROUTERS)
def test_logits_token_by_token_equal_the_forward_pass(router, shape):
    model = model_of(router, shape)
    tokens_BS = random_tokens(model.config)[:, :S]
    with torch.no_grad():
        expected = model(tokens_BS).logits_BSV
    for few in (False, True):
        if few:
            use_few_or_many(model, is_on_gpu=False)
        for first, width in (([1, 1], 1), ([2, 4], 1), ([4, 2], 3)):
            found = by_cache(model, tokens_BS, first, width)
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("backend", ["loop", "grouped"])
@pytest.mark.parametrize("router", ROUTERS)
def test_float32_and_every_expert_backend_of_a_cpu(router, backend):
    model = model_of(router, "plain", backend).float()
    tokens_BS = random_tokens(model.config, batch=3)[:, :S]
    with torch.no_grad():
        expected = model(tokens_BS).logits_BSV.double()
    found = by_cache(model, tokens_BS, [1, 5, 3], 1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.std()))


def test_documents_are_not_seen_across():
    model = model_of("softmax_top3", "plain")
    tokens_BS = random_tokens(model.config, lowest=1)[:, :S]
    tokens_BS[0, 3] = tokens_BS[1, 5] = tokens_BS[:, 0] = 0
    document_BS = documents(tokens_BS, 0)
    with torch.no_grad():
        expected = model(tokens_BS, document_BS).logits_BSV
        whole = model(tokens_BS).logits_BSV
    found = by_cache(model, tokens_BS, [2, 4], 1, document_BS)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    assert not torch.allclose(found, whole)


def test_tokens_are_taken_back_by_reading_others_at_their_positions():
    model = model_of("softmax_top3", "plain")
    tokens_BS = random_tokens(model.config)[:, :S]
    wrong_BS = random_tokens(model.config, seed=1)[:, :S]
    cache = new_cache(model, B, S)
    position_BS, hidden = torch.arange(S).expand(B, S), torch.empty(0)
    with torch.no_grad():
        fill(model, cache, tokens_BS[:, :2])
        step(model, cache, wrong_BS[:, 2:], position_BS[:, 2:])
        for at in range(2, S):
            hidden = step(model, cache, tokens_BS[:, at : at + 1], position_BS[:, at : at + 1])
        expected = model(tokens_BS).logits_BSV[:, -1:]
    torch.testing.assert_close(logits(model, hidden), expected, rtol=0, atol=1e-10)


def test_one_sequence_is_read_anew_beside_others():
    model = model_of("softmax_top3", "plain")
    tokens_BS = random_tokens(model.config, batch=3)[:, :S]
    cache = new_cache(model, 3, S)
    with torch.no_grad():
        fill(model, cache, tokens_BS[:, : S - 1])
        fill(model, cache, tokens_BS[:1, 1:4], row_B=torch.tensor([2]))
        last_BS = torch.stack([tokens_BS[0, -1:], tokens_BS[1, -1:], tokens_BS[0, 4:5]])
        hidden = step(model, cache, last_BS, torch.tensor([[S - 1], [S - 1], [3]]))
        expected = model(tokens_BS[:2]).logits_BSV[:, -1]
        anew = model(tokens_BS[:1, 1:5]).logits_BSV[:, -1]
    found = logits(model, hidden)[:, 0]
    torch.testing.assert_close(found, torch.cat([expected, anew]), rtol=0, atol=1e-10)
