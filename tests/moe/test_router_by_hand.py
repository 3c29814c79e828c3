"""The choice of experts and their gates, compared with plain Python, token by token."""

import itertools

import pytest
import torch
from torch import Tensor

from moebius.moe.router import expert_capacity, place_in_expert, sigmoid, softmax_topk, switch
from moebius.moe.statistics import who_chose
from tests.moe.routers import BIAS, LOGITS, TIES, E, K, T


def plain_switch(
    probs: list[list[float]], capacity: int, bias: list[float]
) -> tuple[list[int], list[float]]:
    """Return the expert and the gate of every token, as the papers describe the router."""
    experts = [max(range(len(row)), key=lambda e, row=row: row[e] + bias[e]) for row in probs]
    gates = [row[expert] for row, expert in zip(probs, experts, strict=True)]
    taken = [0] * len(bias)
    for token, expert in enumerate(list(experts)):
        if taken[expert] == capacity:
            experts[token], gates[token] = len(bias), 0.0
        else:
            taken[expert] += 1
    return experts, gates


def plain_topk(
    row: list[float], k: int, bias: list[float], renormalize: bool, scale: float
) -> dict[int, float]:
    """Return the gate of each of one token's experts, from the token's probabilities."""
    best = sorted(range(len(row)), key=lambda e: row[e] + bias[e], reverse=True)[:k]
    total = sum(row[e] for e in best) if renormalize and k > 1 else 1.0
    return {e: scale * row[e] / total for e in best}


def assert_switch_by_hand(logits: Tensor, capacity: int, bias_E: Tensor) -> None:
    chosen, gates = plain_switch(logits.softmax(-1).tolist(), capacity, bias_E.tolist())
    ours = switch(logits, capacity, 2.5, bias_E)
    assert ours.expert_TK[:, 0].tolist() == chosen
    assert ours.gate_TK[:, 0].tolist() == pytest.approx([2.5 * gate for gate in gates])
    assert who_chose(ours.expert_TK, logits.shape[1]).sum(dim=0).max() <= capacity


@pytest.mark.parametrize("experts", [1, 2, E])
@pytest.mark.parametrize("tokens", [1, T])
def test_switch_by_hand(experts, tokens):
    all_to_one_E = torch.arange(experts) * 2.0
    for factor in (0.1, 1.0, 1.25, 100.0):
        capacity = expert_capacity(tokens, experts, factor)
        assert capacity >= factor * tokens / experts > capacity - 1
        for bias_E in (torch.zeros(experts), BIAS[:experts], all_to_one_E):
            assert_switch_by_hand(LOGITS[:tokens, :experts], capacity, bias_E)
            assert_switch_by_hand(TIES[:tokens, :experts], capacity, bias_E)


@pytest.mark.parametrize(
    ("tokens", "experts", "tenths"),
    [(100, 10, 11), (200, 10, 11), (1, 1, 1), (37, 5, 6), (37, 5, 0)],
)
def test_the_capacity_is_the_rounded_up_share(tokens, experts, tenths):
    """The expected share is computed with integers: 1.1 * 100 / 10 must give 11, not 12."""
    assert expert_capacity(tokens, experts, tenths / 10) == -(-tenths * tokens // (10 * experts))


@pytest.mark.parametrize(
    "logits", [torch.zeros(T, E), torch.eye(E)[3].expand(T, E), torch.eye(E)[[1, 4] * 9]]
)
def test_switch_by_hand_with_experts_that_nobody_chooses(logits):
    for capacity, bias_E in itertools.product((0, 1, 7, T, T + 9), (torch.zeros(E), BIAS)):
        assert_switch_by_hand(logits, capacity, bias_E)


def test_a_full_expert_drops_the_later_tokens():
    logits = torch.tensor([[1.0, 0], [3, 0], [2, 0], [0, 1], [3, 0]])
    assert switch(logits, 2).expert_TK[:, 0].tolist() == [0, 0, 2, 1, 2]


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize(
    ("tokens", "experts", "k"), [(T, E, 1), (T, E, K), (T, E, E), (1, E, 2), (T, 1, 1), (1, 1, 1)]
)
def test_topk_by_hand(score, renormalize, tokens, experts, k):
    biases = (torch.zeros(experts), BIAS[:experts], torch.arange(experts) * 2.0)
    for logits, bias_E in itertools.product((LOGITS, TIES), biases):
        logits_TE = logits[:tokens, :experts]
        probs_TE = logits_TE.softmax(-1) if score == "softmax" else logits_TE.sigmoid()
        ours = softmax_topk(logits_TE, k, renormalize, 2.5, bias_E, score)
        assert ours.expert_TK.shape == ours.gate_TK.shape == (tokens, k)
        for token, row in enumerate(probs_TE.tolist()):
            chosen, gate = ours.expert_TK[token].tolist(), ours.gate_TK[token].tolist()
            gates = dict(zip(chosen, gate, strict=True))
            expected = plain_topk(row, k, bias_E.tolist(), renormalize, 2.5)
            biased = [row[e] + bias_E[e].item() for e in range(experts)]
            assert len(gates) == k  # no expert twice
            # If experts tie, any of them may be chosen.
            best = sorted(biased[e] for e in expected)
            assert sorted(biased[e] for e in gates) == pytest.approx(best)
            assert sorted(gates.values()) == pytest.approx(sorted(expected.values()), rel=1e-5)
            if len(set(biased)) == experts:
                assert gates == pytest.approx(expected, rel=1e-5)


def test_topk_takes_each_expert_once():
    routing = softmax_topk(LOGITS, K, renormalize=False)
    for token, chosen in enumerate(routing.expert_TK.tolist()):
        assert sorted(chosen) == sorted(LOGITS[token].argsort(descending=True)[:K].tolist())
    torch.testing.assert_close(routing.gate_TK, LOGITS.softmax(-1).gather(1, routing.expert_TK))


@pytest.mark.parametrize("renormalize", [True, False])
def test_a_top1_gate_is_its_probability_whatever_the_flag(renormalize):
    routing = softmax_topk(LOGITS, 1, renormalize)
    torch.testing.assert_close(routing.gate_TK[:, 0], LOGITS.softmax(-1).max(-1).values)
    routing = softmax_topk(LOGITS, 1, renormalize, score="sigmoid")
    torch.testing.assert_close(routing.gate_TK[:, 0], LOGITS.sigmoid().max(-1).values)


def test_sigmoid_by_hand():
    routing = sigmoid(torch.tensor([[0.0, 3.0, -9.0], [-9.0, -9.0, -9.0]]), threshold=0.4)
    assert routing.expert_TK.tolist() == [[0, 1, 3], [3, 3, 3]]  # 3 stands for no expert
    torch.testing.assert_close(routing.gate_TK, torch.tensor([[0.5, 0.952574, 0], [0, 0, 0]]))
    assert who_chose(routing.expert_TK, 3).sum(dim=0).tolist() == [1, 1, 0]


@pytest.mark.parametrize(("tokens", "experts"), [(T, E), (1, E), (T, 1), (1, 1)])
def test_sigmoid_with_a_bias_by_hand(tokens, experts):
    all_E, none_E = torch.full((experts,), 2.0), torch.full((experts,), -2.0)
    biases = (torch.zeros(experts), BIAS[:experts], all_E, none_E)
    # In TIES, a logit of 0 is at the threshold and not above it.
    for bias_E, logits in itertools.product(biases, (LOGITS, TIES)):
        logits_TE = logits[:tokens, :experts]
        ours = sigmoid(logits_TE, 0.5, 2.5, bias_E)
        for token, row in enumerate(logits_TE.sigmoid().tolist()):
            active = [row[e] + bias_E[e].item() > 0.5 for e in range(experts)]
            expected = [e if active[e] else experts for e in range(experts)]
            assert ours.expert_TK[token].tolist() == expected
            gates = [2.5 * p * is_active for p, is_active in zip(row, active, strict=True)]
            assert ours.gate_TK[token].tolist() == pytest.approx(gates)


@pytest.mark.parametrize(
    "experts", [[0], [E - 1], [2] * 9, [4, 1, 4, 4, 1], LOGITS.argmax(-1).tolist(), list(range(E))]
)
def test_place_in_expert_by_hand(experts):
    seen = [0] * E
    places = []
    for expert in experts:
        places.append(seen[expert])
        seen[expert] += 1
    assert place_in_expert(torch.tensor(experts), E).tolist() == places


def test_place_in_the_only_expert():
    assert place_in_expert(torch.zeros(T, dtype=torch.long), 1).tolist() == list(range(T))


def test_no_expert_is_a_number_of_its_own():
    expert_TK = torch.tensor([[0, E], [E, E], [2, 0], [4, E]])
    chosen = [row.nonzero().flatten().tolist() for row in who_chose(expert_TK, E)]
    assert chosen == [[0], [], [0, 2], [4]]
    dropped = switch(torch.eye(E)[[2, 2, 1]], capacity=1)
    assert dropped.expert_TK.tolist() == [[2], [E], [1]]
    assert dropped.gate_TK[1] == 0
