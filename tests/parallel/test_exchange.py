"""The exchange of tokens, with one process that sends to itself.

tests/parallel/test_many.py compares several processes with one.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from moebius.moe.experts import ExpertWeights, loop
from moebius.moe.router import Routing
from moebius.parallel import exchange
from moebius.parallel.exchange import Exchange

T, D, E, F, K = 11, 6, 4, 5, 3


@pytest.fixture
def group(tmp_path) -> Iterator[Any]:
    """Return the group of a single process."""
    meeting = f"file://{tmp_path / 'meet'}"
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=0, world_size=1)
    yield torch.distributed.group.WORLD
    torch.distributed.destroy_process_group()


def results(run: Any, expert_TK: Tensor) -> list[Tensor]:
    """Return a backend's output and every gradient."""
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> Tensor:
        values = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return values.requires_grad_()

    num_tokens = len(expert_TK)
    x_TD, gate_TK = random(num_tokens, D), random(num_tokens, K)
    weights = [random(E, D, F), random(E, D, F), random(E, F, D)]
    none_TE = torch.empty(num_tokens, E)
    routing = Routing(gate_TK, expert_TK, none_TE, none_TE)
    gate_EDF, up_EDF, down_EFD = weights
    out_TD = run(x_TD, routing, ExpertWeights(gate_EDF, up_EDF, down_EFD, "swiglu", 0.0))
    out_TD.backward(random(num_tokens, D).detach())
    inputs = (x_TD, gate_TK, *weights)
    return [out_TD.detach(), *(value.grad for value in inputs)]  # pyright: ignore


ROUTINGS = {
    "some": torch.randint(E + 1, (T, K), generator=torch.Generator().manual_seed(2)),
    "one expert": torch.full((T, K), 2),
    "none": torch.full((T, K), E),
    "one token": torch.tensor([[0, E, 3]]),
}


@pytest.mark.parametrize("name", ROUTINGS)
def test_the_exchange_changes_nothing(group, name):
    own = results(Exchange(loop, group, E), ROUTINGS[name])
    for value, expected in zip(own, results(loop, ROUTINGS[name]), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)


def test_a_token_is_sent_once_to_a_process_however_many_experts_it_has_there(group, monkeypatch):
    sent: list[int] = []
    original = exchange._all_to_all

    def noted(rows: Tensor, *sizes: Any) -> Tensor:
        sent.append(len(rows))
        return original(rows, *sizes)

    monkeypatch.setattr(exchange, "_all_to_all", noted)
    results(Exchange(loop, group, E), ROUTINGS["some"])
    assert set(sent) == {int((ROUTINGS["some"] < E).any(dim=1).sum())}
