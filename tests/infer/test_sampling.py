"""Which tokens the filters leave, and how tokens are drawn."""

import math

import pytest
import torch

from moebius.errors import ConfigError
from moebius.infer.sampling import Sampling, draw, probabilities

LOGITS = torch.tensor([0.1, 0.4, 0.05, 0.25, 0.2]).log()


@pytest.mark.parametrize(
    ("sampling", "left"),
    [
        (Sampling(temperature=1), [0, 1, 2, 3, 4]),
        (Sampling(temperature=1, top_k=2), [1, 3]),
        (Sampling(temperature=1, top_k=9), [0, 1, 2, 3, 4]),
        (Sampling(temperature=1, top_p=0.39), [1]),
        (Sampling(temperature=1, top_p=0.64), [1, 3]),
        (Sampling(temperature=1, top_p=0.66), [1, 3, 4]),
        (Sampling(temperature=1, top_p=1e-9), [1]),
        (Sampling(temperature=1, min_p=0.49), [1, 3, 4]),
        (Sampling(temperature=1, min_p=1.0), [1]),
        # 0.4 / 0.85 = 0.47 is below 0.6, and 0.65 / 0.85 above: the third of the three is left out
        (Sampling(temperature=1, top_k=3, top_p=0.6), [1, 3]),
        (Sampling(temperature=1, top_k=4, top_p=0.99, min_p=0.3), [1, 3, 4]),
        (Sampling(temperature=0), [1]),
        (Sampling(temperature=5, top_k=1), [1]),
    ],
)
def test_the_filters_leave_these_tokens_with_their_ratios(sampling, left):
    probs = probabilities(LOGITS.expand(2, 3, 5), sampling)
    assert probs.shape == (2, 3, 5)
    expected = torch.zeros(5)
    expected[left] = LOGITS.exp()[left] / LOGITS.exp()[left].sum()
    torch.testing.assert_close(probs, expected.expand(2, 3, 5))


def test_equal_tokens_are_told_apart_by_their_ids():
    probs = probabilities(torch.zeros(6), Sampling(temperature=1, top_k=2))
    assert probs.tolist() == [0.5, 0.5, 0, 0, 0, 0]
    assert probabilities(torch.zeros(6), Sampling(temperature=0)).argmax() == 0


@pytest.mark.parametrize("temperature", [1e-6, 0.5, 2.0, 1e300])
def test_the_temperature_divides_the_logits(temperature):
    found = probabilities(LOGITS, Sampling(temperature=temperature))
    expected = (LOGITS.double() / temperature).softmax(dim=-1).float()
    torch.testing.assert_close(found, expected)


def test_drawing_follows_the_weights_and_takes_no_token_of_weight_0():
    weights = torch.tensor([0.0, 3.0, 0.0, 1.0, 0.0])
    uniform = torch.tensor([0.0, 0.5, 0.75 - 1e-9, 0.75, 1 - 2**-32], dtype=torch.float64)
    assert draw(weights.expand(5, 5), uniform).tolist() == [1, 1, 1, 3, 3]
    many = torch.arange(4000, dtype=torch.float64) / 4000
    counts = draw(weights.expand(4000, 5), many).bincount(minlength=5)
    assert counts.tolist() == [0, 3000, 0, 1000, 0]


def test_a_rare_token_among_many_is_drawn():
    weights = torch.full((60_000,), 1.0)
    weights[-1] = 1e-4
    assert int(draw(weights[None], torch.tensor([1 - 2**-32], dtype=torch.float64))) == 59_999


@pytest.mark.parametrize(
    "wrong",
    [
        *({"temperature": value} for value in (-1.0, math.nan, math.inf)),
        {"top_k": -1},
        *({"top_p": value} for value in (0.0, -0.1, 1.1, math.nan)),
        *({"min_p": value} for value in (-0.1, 1.1, math.nan)),
    ],
)
def test_values_that_are_refused(wrong):
    with pytest.raises(ConfigError, match=f"^{next(iter(wrong))}="):
        Sampling(**wrong)
