"""Scores of texts, compared with the logits of each text alone."""

import pytest
import torch

from moebius.config import Config
from moebius.data.tokenizer import prepare_tokenizer
from moebius.infer import scoring
from moebius.infer.language_model import LanguageModel, language_model
from moebius.infer.scoring import Text, scores
from moebius.train.state import model_tensors
from tests.infer.stock import model_config, transformer

CPU = torch.device("cpu")
CONTEXT = 16


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    """A model with more rows in its head than the tokenizer has ids, that drops tokens."""
    shape = model_config(
        vocab_size=300, router_type="switch", router_top_k=1, capacity_factor=0.5,
        base_expansion=1.0,
    )  # fmt: skip
    config = Config(model=shape)
    tokenizer = prepare_tokenizer(config.data.__class__(tokenizer="bytes"), 300, [])
    found = language_model(config, model_tensors(transformer(shape)), tokenizer, CPU, CONTEXT)
    return LanguageModel(found.model, tokenizer, CONTEXT)


def by_hand(model: LanguageModel, tokens: list[int], num_given: int) -> tuple[float, bool]:
    """Return the score of the tokens after the given ones, read with a sliding beginning."""
    total, is_greedy, first = 0.0, True, num_given
    while first < len(tokens):
        stop = min(len(tokens), first + CONTEXT)
        start = max(0, stop - 1 - CONTEXT)
        with torch.no_grad():
            logits_SV = model.model(torch.tensor([tokens[start : stop - 1]])).logits_BSV[
                0, :, :257
            ]
        for place in range(first, stop):
            logits_V = logits_SV[place - 1 - start].double()
            total += logits_V.log_softmax(dim=0)[tokens[place]].item()
            is_greedy &= int(logits_V.argmax()) == tokens[place]
        first = stop
    return total, is_greedy


def test_scores_do_not_depend_on_the_texts_beside_them(model, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    texts = []
    for length, num_given in [
        (2, 1),
        (9, 3),
        (17, 16),
        (18, 4),
        (16, 1),
        (40, 3),
        (50, 45),
        (3, 3),
    ]:
        tokens = [0, *torch.randint(257, (length - 1,), generator=generator).tolist()]
        texts.append(Text(tokens, num_given))
    expected = [by_hand(model, list(text.tokens), text.num_given) for text in texts]
    for most in (1, 40, 10**6):
        monkeypatch.setattr(scoring, "MOST_AT_ONCE", most)
        monkeypatch.setattr(scoring, "MOST_LOGITS", most)
        found = scores(model, texts)
        assert [score.is_greedy for score in found] == [greedy for _, greedy in expected]
        assert [score.log_probability for score in found] == pytest.approx(
            [value for value, _ in expected], rel=1e-5, abs=1e-6
        )
    assert found[-1] == (0.0, True)  # nothing to predict


def test_a_greedy_text_is_greedy(model):
    tokens = [0, 5, 9]
    for _ in range(6):
        with torch.no_grad():
            logits_V = model.model(torch.tensor([tokens])).logits_BSV[0, -1, :257]
        tokens.append(int(logits_V.argmax()))
    other = [*tokens[:-1], (tokens[-1] + 1) % 257]
    greedy, less = scores(model, [Text(tokens, 3), Text(other, 3)])
    assert greedy.is_greedy and not less.is_greedy
    assert greedy.log_probability > less.log_probability
