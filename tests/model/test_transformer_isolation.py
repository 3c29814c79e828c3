"""A token must not depend on later tokens, on other sequences, or on other documents."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from moebius.config import ModelConfig
from moebius.model.loss import IGNORED, documents, shifted_targets
from moebius.model.transformer import Transformer, lookahead
from tests.model.tiny import ROUTERS, B, E, S, V, decided, random_tokens, tiny

END = 0


def all_logits(model: Transformer, tokens_BS: Tensor, document_BS: Tensor | None = None) -> Tensor:
    """Return logits_BSOV of the next token and, with MTP, of the three tokens after it."""
    hidden_BSD, _ = model.hidden(tokens_BS, document_BS)
    logits = [model.lm_head(model.norm(hidden_BSD))]
    if model.mtp is not None:
        for ahead_BSD, bias_V in model.mtp(hidden_BSD)[0]:
            logits.append(model.lm_head(model.norm(ahead_BSD)) + bias_V)
    return torch.stack(logits, dim=2)


@pytest.mark.parametrize("use_mtp", [False, True])
@pytest.mark.parametrize("router", ROUTERS)
def test_changing_a_token_never_changes_a_logit_before_it(router, use_mtp):
    model = decided(tiny(**ROUTERS[router], use_mtp=use_mtp))
    tokens_BS = random_tokens(model.config)[:, :S]
    if router == "switch":
        assert model(tokens_BS).stats[0].tokens_per_expert_E.sum() < B * S  # capacity drops some
    before = all_logits(model, tokens_BS)
    assert before.shape == (B, S, 4 if use_mtp else 1, V)
    for t in range(S):
        changed_BS = tokens_BS.clone()
        changed_BS[-1, t] = (changed_BS[-1, t] + 1) % V
        difference = (all_logits(model, changed_BS) - before).abs().amax(dim=(2, 3))
        # Neither does a token of another sequence; for the switch router, of an earlier sequence.
        assert difference[:-1].max() < 1e-10
        assert t == 0 or difference[-1, :t].max() < 1e-10
        assert difference[-1, t] > 1e-4


@pytest.mark.parametrize("router", [name for name in ROUTERS if name != "switch"])
def test_sequences_of_a_batch_do_not_see_each_other(router):
    model = decided(tiny(**ROUTERS[router]))
    tokens_BS = random_tokens(model.config)[:, :S]
    together = model(tokens_BS).logits_BSV
    for b in range(B):
        alone = model(tokens_BS[b : b + 1]).logits_BSV[0]
        torch.testing.assert_close(alone, together[b], rtol=0, atol=1e-10)


def packed(lengths: tuple[int, ...], seeds: list[int], config: ModelConfig) -> Tensor:
    """Return tokens_1L with documents of these lengths, and the beginning of another document.

    Each document is END followed by random tokens from its own seed.
    """
    pieces = []
    for length, seed in zip((*lengths, lookahead(config)), [*seeds, 99], strict=True):
        generator = torch.Generator().manual_seed(seed)
        pieces += [torch.tensor([END]), torch.randint(1, V, (length - 1,), generator=generator)]
    return torch.cat(pieces)[None]


def logits_and_losses(model: Transformer, tokens_1L: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return logits_SOV and, for each offset O, the loss of every token."""
    document_1L = documents(tokens_1L, END)
    logits_SOV = all_logits(model, tokens_1L[:, :S], document_1L[:, :S])[0]
    losses = []
    for place in range(logits_SOV.shape[1]):
        target_S = shifted_targets(tokens_1L, 1 + place, S, document_1L)[0]
        losses.append(
            F.cross_entropy(logits_SOV[:, place], target_S, reduction="none", ignore_index=IGNORED)
        )
    return logits_SOV, losses


@pytest.mark.parametrize("lengths", [(3, 4), (1, 5, 1), (2, 2, 3), (6, 1), (7,)])
@pytest.mark.parametrize("use_mtp", [False, True])
@pytest.mark.parametrize("router", ROUTERS)
def test_a_document_does_not_depend_on_its_neighbors(router, use_mtp, lengths):
    # A full expert also drops tokens of later documents. With the switch router, documents are
    # therefore only independent while no expert is full.
    config = tiny(**{**ROUTERS[router], "capacity_factor": float(E)}, use_mtp=use_mtp)
    model = decided(config)
    seeds = list(range(len(lengths)))
    before_SOV, losses_before = logits_and_losses(model, packed(lengths, seeds, config))
    start = 0
    for place, length in enumerate(lengths):
        own = slice(start, start + length)
        new_seeds = [seed if i == place else seed + 10 for i, seed in enumerate(seeds)]
        after_SOV, losses_after = logits_and_losses(model, packed(lengths, new_seeds, config))
        torch.testing.assert_close(after_SOV[own], before_SOV[own], rtol=0, atol=1e-10)
        for before_S, after_S in zip(losses_before, losses_after, strict=True):
            torch.testing.assert_close(after_S[own], before_S[own], rtol=0, atol=1e-10)
        # At the beginning of a sequence, the document has other positions, with float32 angles.
        if length < S:
            at_start = packed((length, S - length), [place, 50], config)
            at_start_SOV, _ = logits_and_losses(model, at_start)
            expected_SOV = before_SOV[own]
            torch.testing.assert_close(at_start_SOV[:length], expected_SOV, rtol=0, atol=1e-5)
        start += length


def test_without_document_masking_neighbors_are_seen():
    model = decided(tiny())
    first, second = (
        model(packed((3, 4), [seed, 1], model.config)[:, :S]).logits_BSV for seed in (0, 10)
    )
    assert (first - second)[0, 3:].abs().amax(dim=-1).min() > 1e-6
