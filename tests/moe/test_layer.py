"""The MoE layer: its sums, its statistics, and that it equals Mixtral's block."""

from collections import Counter

import pytest
import torch
from torch import Tensor

from moebius.config import ModelConfig
from moebius.config.routers import ROUTERS as RECORDS
from moebius.model.transformer import Transformer
from moebius.moe.balance import balance_losses
from moebius.moe.experts import ExpertsFunction, grouped, loop
from moebius.moe.layer import MoE
from moebius.moe.mlp import MLP
from tests.model.tiny import ROUTERS, B, D, E, S, tiny

T, F = B * S, 64


def drawn(config: ModelConfig, num_experts: int = E, run: ExpertsFunction = loop) -> MoE:
    """Return a layer with random weights whose router chooses different experts for tokens."""
    torch.manual_seed(0)
    moe = MoE(config, num_experts, F, run)
    for name, parameter in moe.named_parameters():
        torch.nn.init.normal_(parameter, std=1.0 if "router" in name else 0.2)
    return moe


def drawn_input(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(B, S, D, generator=torch.Generator().manual_seed(1)).to(dtype)


def routed_by_hand(moe: MoE, x_BSD: Tensor) -> Tensor:
    """Return the experts' output, computed one token and one expert at a time."""
    assert moe.router is not None
    assert moe.experts is not None and moe.experts.w_gate_EDF is not None
    x_TD = x_BSD.reshape(T, D)
    routing = moe.router(x_TD)
    out_TD = torch.zeros_like(x_TD)
    for t in range(T):
        for gate, expert in zip(routing.gate_TK[t], routing.expert_TK[t].tolist(), strict=True):
            if expert < moe.num_experts:
                inner = x_TD[t] @ moe.experts.w_gate_EDF[expert]
                hidden = inner * torch.sigmoid(inner) * (x_TD[t] @ moe.experts.w_up_EDF[expert])
                out_TD[t] += gate * (hidden @ moe.experts.w_down_EFD[expert])
    return out_TD.view(B, S, D)


def parts_of(moe: MoE) -> set[str]:
    return {name.split(".")[0] for name, _ in moe.named_parameters()}


def test_base_alone():
    moe = drawn(tiny(num_experts=0, base_expansion=2.0), num_experts=0)
    assert parts_of(moe) == {"base"}
    out_BSD, stats = moe(drawn_input())
    assert stats is None and isinstance(moe.base, MLP)
    assert torch.equal(out_BSD, moe.base(drawn_input()))


@pytest.mark.parametrize(
    ("router", "base_expansion"),
    [
        (router, expansion)
        for router in ROUTERS
        for expansion in (0.0, 2.0)
        if router != "sigmoid" or expansion
    ],
)
def test_base_and_experts_are_added(router, base_expansion):
    moe = drawn(tiny(**{**ROUTERS[router], "base_expansion": base_expansion})).double()
    assert parts_of(moe) == {"router", "experts"} | ({"base"} if base_expansion else set())
    x_BSD = drawn_input(torch.float64)
    base_BSD = moe.base(x_BSD) if moe.base is not None else torch.zeros_like(x_BSD)
    expected_BSD = base_BSD + routed_by_hand(moe, x_BSD)
    torch.testing.assert_close(moe(x_BSD)[0], expected_BSD, rtol=0, atol=1e-10)


@pytest.mark.parametrize("router", ROUTERS)
def test_the_learned_mix_is_a_softmax_of_two_per_token(router):
    config = tiny(**{"base_expansion": 2.0, **ROUTERS[router]}, residual_mix="learned")
    moe = drawn(config).double()
    assert moe.mix is not None and moe.base is not None
    x_BSD = drawn_input(torch.float64)
    weight_2D = moe.mix.weight
    share = (1 / (1 + (x_BSD @ (weight_2D[1] - weight_2D[0])).exp()))[..., None]
    assert share.min() < 0.3 and share.max() > 0.7
    expected_BSD = share * moe.base(x_BSD) + (1 - share) * routed_by_hand(moe, x_BSD)
    # The layer computes the shares in float32.
    torch.testing.assert_close(moe(x_BSD)[0], expected_BSD, rtol=0, atol=1e-6)


def test_the_learned_mix_starts_even():
    model = Transformer(tiny(base_expansion=2.0, residual_mix="learned", use_mtp=True))
    layers = [module for module in model.modules() if isinstance(module, MoE)]
    assert len(layers) == 3
    for moe in layers:
        assert moe.base is not None
        by_hand = (moe.base(drawn_input()) + routed_by_hand(moe, drawn_input())) / 2
        torch.testing.assert_close(moe(drawn_input())[0], by_hand, rtol=0, atol=1e-6)


@pytest.mark.parametrize("changes", [{"base_expansion": 2.0}, {"residual_mix": "learned"}])
def test_no_mix_where_there_is_nothing_to_mix(changes):
    assert drawn(tiny(**changes)).mix is None


def test_a_token_without_an_expert_has_its_base_alone():
    moe = drawn(tiny(router_type="sigmoid", router_threshold=1.0, base_expansion=2.0))
    out_BSD, stats = moe(drawn_input())
    assert moe.base is not None and torch.equal(out_BSD, moe.base(drawn_input()))
    assert stats is not None and stats.tokens_per_expert_E.tolist() == [0] * E
    assert balance_losses([stats]).item() == 0 and stats.unrouted == T


@pytest.mark.parametrize("router", ROUTERS)
def test_statistics_count_what_the_router_did(router):
    moe = drawn(tiny(**ROUTERS[router]))
    assert moe.router is not None
    routing = moe.router(drawn_input().flatten(0, 1))
    _, stats = moe(drawn_input())
    assert stats is not None
    taken = Counter(routing.expert_TK.flatten().tolist())
    counts = [taken[expert] for expert in range(E)]
    assert stats.tokens_per_expert_E.tolist() == counts
    num_assignments = {"softmax_topk": T, "softmax_top3": 3 * T}
    in_all = T * routing.expert_TK.shape[1] - taken[E]
    assert sum(counts) == num_assignments.get(router, in_all)
    # These two routers leave some tokens without an expert.
    assert (router in ("switch", "sigmoid")) == (taken[E] > 0)
    # The balance loss counts the chosen experts, even if a full expert then dropped the token.
    probs_TE = routing.probs_TE.double()
    has_capacity = RECORDS[ROUTERS[router]["router_type"]].has_capacity
    chosen = Counter(probs_TE.argmax(dim=-1).tolist()) if has_capacity else taken
    mean_E = (probs_TE / probs_TE.sum(dim=-1, keepdim=True)).mean(dim=0).tolist()
    balance = E * sum(chosen[expert] / T * mean_E[expert] for expert in range(E))
    assert balance_losses([stats]).item() == pytest.approx(balance, rel=1e-5)
    log_partition = routing.logits_TE.double().exp().sum(dim=-1).log()
    assert (stats.squared_log_partition / stats.tokens).item() == pytest.approx(
        (log_partition**2).mean().item(), rel=1e-5
    )


@pytest.mark.parametrize("run", [loop, grouped])
@pytest.mark.parametrize("k", [2, 3])
def test_it_is_mixtrals_block(run, k):
    """The output and the gradient of every parameter agree, including the router's."""
    mixtral = pytest.importorskip("transformers.models.mixtral.modeling_mixtral")
    from transformers import MixtralConfig

    settings = MixtralConfig(
        hidden_size=D, intermediate_size=F, num_local_experts=E, num_experts_per_tok=k
    )
    peer = mixtral.MixtralSparseMoeBlock(settings)
    ours = drawn(tiny(router_top_k=k), run=run)
    router, experts = ours.router, ours.experts
    assert router is not None and experts is not None and experts.w_gate_EDF is not None
    with torch.no_grad():
        peer.gate.weight.copy_(router.weight_ED / D**0.5)
        into_EDF = torch.cat([experts.w_gate_EDF, experts.w_up_EDF], dim=2)
        peer.experts.gate_up_proj.copy_(into_EDF.transpose(1, 2))
        peer.experts.down_proj.copy_(experts.w_down_EFD.transpose(1, 2))
    x_BSD, upstream_BSD = drawn_input(), torch.randn(B, S, D)
    out_BSD, expected_BSD = ours(x_BSD)[0], peer(x_BSD)
    torch.testing.assert_close(out_BSD, expected_BSD, rtol=1e-4, atol=1e-5)
    out_BSD.backward(upstream_BSD)
    expected_BSD.backward(upstream_BSD)
    gate_grad, up_grad = peer.experts.gate_up_proj.grad.transpose(1, 2).split(F, dim=2)
    pairs = {
        "router": (router.weight_ED.grad, peer.gate.weight.grad / D**0.5),
        "gate": (experts.w_gate_EDF.grad, gate_grad),
        "up": (experts.w_up_EDF.grad, up_grad),
        "down": (experts.w_down_EFD.grad, peer.experts.down_proj.grad.transpose(1, 2)),
    }
    for name, (gradient, expected) in pairs.items():
        torch.testing.assert_close(
            gradient, expected, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize(
    ("changes", "experts", "widths"),
    [
        (
            {"moe_min_expansion": 2.0, "moe_max_expansion": 10.0, "num_layers": 4},
            (5, 5, 5, 5),
            (64, 128, 192, 256),
        ),
        (
            {"moe_min_expansion": 8.0, "moe_max_expansion": 2.0, "num_layers": 3},
            (5, 5, 5),
            (192, 128, 64),
        ),
        ({"num_experts": (2, 7, 3), "num_layers": 3}, (2, 7, 3), (64, 64, 128)),
        (
            {"num_experts": (2, 0, 3), "num_layers": 3, "base_expansion": 1.0},
            (2, 0, 3),
            (64, 64, 128),
        ),
        ({"num_layers": 1}, (5,), (64,)),
    ],
)
def test_the_pyramid_by_width_and_by_count(changes, experts, widths):
    model = Transformer(tiny(**changes))
    _, stats = model(torch.zeros(B, S, dtype=torch.long))
    counts = [len(layer.tokens_per_expert_E) for layer in stats]
    assert counts == [count for count in experts if count]
    layers = [module for module in model.modules() if isinstance(module, MoE)]
    for moe, count, width in zip(layers, experts, widths, strict=True):
        assert (moe.router is None) == (moe.experts is None) == (count == 0)
        assert moe.experts is None or moe.experts.w_up_EDF.shape == (count, D, width)
