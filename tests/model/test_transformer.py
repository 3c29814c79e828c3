"""The whole model: causal, blind to other documents, counted by hand, and able to learn in every variant."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from moebius.config import ModelConfig, ParallelConfig
from moebius.model.backends import choose_backends
from moebius.model.loss import balance_losses, documents, shifted_targets
from moebius.model.transformer import Transformer, count_parameters, lookahead, seeded
from tests.model.tiny import ROUTERS, B, D, E, G, H, N, S, V, random_tokens, tiny, waiting_is_an_error

END = 0
ATTENTION = D * N * H + 2 * D * G * H + N * H * D  # query, key and value, output
BLOCK = 2 * D + ATTENTION  # with its two norms
EXPERTS = E * D + E * 3 * D * 64, E * D + E * 3 * D * 128  # router and three matrices an expert, layer by layer
PLAIN = 2 * V * D + D + 2 * BLOCK + sum(EXPERTS)

# As written in the founding document.
MAXIMUM_SPEED = ModelConfig(
    # Remove base MLP entirely
    base_expansion=0.0,  # No base MLP
    # Larger experts (since no base overhead)
    moe_min_expansion=3.0,  # Was 1.25
    moe_max_expansion=4.0,  # Was 1.75
    # Better routing
    router_type="softmax_topk",  # Guaranteed activation
    router_top_k=1,  # Exactly 1 expert
    # Strong load balancing
    aux_loss_coeff=0.1,  # 10x stronger than default
    # Optional: Disable MTP for max speed
    use_mtp=False,  # Saves 31% compute
)
STABILITY = ModelConfig(
    # Small base MLP
    base_expansion=0.5,  # Minimal safety net
    # Standard experts
    moe_min_expansion=2.0,
    moe_max_expansion=3.0,
    # Hybrid approach
    router_type="sigmoid",
    router_threshold=0.1,
)


def decided(config: ModelConfig) -> Transformer:
    """In float64, its routers far enough from undecided that tokens differ in their experts and some are dropped."""
    model = seeded(0, config).double()
    for name, parameter in model.named_parameters():
        if "router" in name:
            torch.nn.init.normal_(parameter)
    return model


def every_logit(model: Transformer, tokens_BS: Tensor, document_BS: Tensor | None = None) -> Tensor:
    """logits_BSOV: of the next token and, with MTP, of the three after it."""
    hidden_BSD, _ = model.hidden(tokens_BS, document_BS)
    logits = [model.lm_head(model.norm(hidden_BSD))]
    if model.mtp is not None:
        logits += [model.lm_head(model.norm(ahead_BSD)) + bias_V for ahead_BSD, bias_V in model.mtp(hidden_BSD)[0]]
    return torch.stack(logits, dim=2)


@pytest.mark.parametrize("use_mtp", [False, True])
@pytest.mark.parametrize("router", ROUTERS)
def test_changing_a_token_never_changes_a_logit_before_it(router, use_mtp):
    model = decided(tiny(**ROUTERS[router], use_mtp=use_mtp))
    tokens_BS = random_tokens(model.config)[:, :S]
    if router == "switch":
        assert model(tokens_BS).stats[0].tokens_per_expert_E.sum() < B * S  # capacity drops some
    before = every_logit(model, tokens_BS)
    assert before.shape == (B, S, 4 if use_mtp else 1, V)
    for t in range(S):
        changed_BS = tokens_BS.clone()
        changed_BS[-1, t] = (changed_BS[-1, t] + 1) % V
        difference = (every_logit(model, changed_BS) - before).abs().amax(dim=(2, 3))
        assert difference[:-1].max() < 1e-10  # nor in another sequence: for switch, in one that comes before
        assert t == 0 or difference[-1, :t].max() < 1e-10
        assert difference[-1, t] > 1e-4


@pytest.mark.parametrize("router", [name for name in ROUTERS if name != "switch"])
def test_sequences_of_a_batch_do_not_see_each_other(router):
    model = decided(tiny(**ROUTERS[router]))
    tokens_BS = random_tokens(model.config)[:, :S]
    together = model(tokens_BS).logits_BSV
    for b in range(B):
        torch.testing.assert_close(model(tokens_BS[b : b + 1]).logits_BSV[0], together[b], rtol=0, atol=1e-10)


def packed(lengths: tuple[int, ...], seeds: list[int], config: ModelConfig) -> Tensor:
    """tokens_1L: documents of these lengths, each END and then its own seed's tokens; another document follows."""
    pieces = []
    for length, seed in zip((*lengths, lookahead(config)), [*seeds, 99], strict=True):
        pieces += [torch.tensor([END]), torch.randint(1, V, (length - 1,), generator=torch.Generator().manual_seed(seed))]
    return torch.cat(pieces)[None]


@pytest.mark.parametrize("lengths", [(3, 4), (1, 5, 1), (2, 2, 3), (6, 1), (7,)])
@pytest.mark.parametrize("use_mtp", [False, True])
@pytest.mark.parametrize("router", ROUTERS)
def test_a_document_does_not_depend_on_its_neighbours(router, use_mtp, lengths):
    # A full expert drops tokens of later documents too: the switch router keeps documents apart only while nothing is full.
    config = tiny(**{**ROUTERS[router], "capacity_factor": float(E)}, use_mtp=use_mtp)
    model = decided(config)

    def logits_and_losses(tokens_1L: Tensor) -> tuple[Tensor, list[Tensor]]:
        document_1L = documents(tokens_1L, END)
        logits_SOV = every_logit(model, tokens_1L[:, :S], document_1L[:, :S])[0]
        targets = [shifted_targets(tokens_1L, 1 + place, S, document_1L)[0] for place in range(logits_SOV.shape[1])]
        losses = [torch.nn.functional.cross_entropy(logits_SOV[:, o], target_S, reduction="none", ignore_index=-100)
                  for o, target_S in enumerate(targets)]  # fmt: skip
        return logits_SOV, losses

    seeds = list(range(len(lengths)))
    before_SOV, losses = logits_and_losses(packed(lengths, seeds, config))
    start = 0
    for place, length in enumerate(lengths):
        others = [seed if i == place else seed + 10 for i, seed in enumerate(seeds)]
        after_SOV, losses_after = logits_and_losses(packed(lengths, others, config))
        own = slice(start, start + length)
        torch.testing.assert_close(after_SOV[own], before_SOV[own], rtol=0, atol=1e-10)
        for before_S, after_S in zip(losses, losses_after, strict=True):
            torch.testing.assert_close(after_S[own], before_S[own], rtol=0, atol=1e-10)
        alone_SOV, _ = logits_and_losses(packed((length, S - length), [place, 50], config) if length < S else
                                         packed(lengths, seeds, config))  # fmt: skip
        torch.testing.assert_close(alone_SOV[:length], before_SOV[own], rtol=0, atol=1e-5)  # angles are float32
        start += length


def test_without_documents_the_neighbours_are_seen():
    model = decided(tiny())
    first, second = (packed((3, 4), [seed, 1], model.config) for seed in (0, 10))
    logits, other = (model(tokens_1L[:, :S]).logits_BSV for tokens_1L in (first, second))
    assert (logits - other)[0, 3:].abs().amax(dim=-1).min() > 1e-6


def test_the_loss_is_the_cross_entropy_of_the_logits():
    model = decided(tiny(aux_loss_coeff=0.3, router_z_loss_coeff=0.2))
    tokens_BL = random_tokens(model.config)
    tokens_BL[0, 3] = tokens_BL[1, 5] = END
    document_BS = documents(tokens_BL, END)[:, :S]
    loss = model.loss(tokens_BL, END)
    output = model(tokens_BL[:, :S], document_BS)
    logprob_BSV = output.logits_BSV.log_softmax(dim=-1)
    by_hand = -torch.stack([logprob_BSV[b, t, tokens_BL[b, t + 1]] for b in range(B) for t in range(S)]).mean()
    torch.testing.assert_close(loss.next_token.double(), by_hand, rtol=0, atol=1e-5)
    balance = balance_losses(output.stats)
    parts = sum(0.3 * balance[i] + 0.2 * layer.squared_log_partition / layer.tokens for i, layer in enumerate(output.stats))
    torch.testing.assert_close(loss.total.double(), by_hand + parts, rtol=0, atol=1e-5)
    assert not torch.equal(loss.next_token, model.loss(tokens_BL).next_token)


def test_seeded_is_reproducible():
    first, again, other = (seeded(seed, tiny(use_mtp=True)).state_dict() for seed in (3, 3, 4))
    assert first.keys() == again.keys()
    for name, value in first.items():
        assert torch.equal(value, again[name])
        is_constant = name.endswith(("norm.weight", "bias_OV", "bias_E"))
        assert torch.equal(value, other[name]) == is_constant, name


def test_tied_embeddings_are_one_parameter():
    model = seeded(0, tiny(tie_embeddings=True))
    assert model.lm_head.weight is model.embedding.weight
    tokens_BL = random_tokens(model.config)
    model.loss(tokens_BL).total.backward()
    gradient = model.embedding.weight.grad
    assert gradient is not None and (gradient.norm(dim=1) > 0).all()  # tokens that were not read too: the head's part
    assert seeded(0, tiny()).lm_head.weight.data_ptr() != seeded(0, tiny()).embedding.weight.data_ptr()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, PLAIN),
        ({"router_type": "switch"}, PLAIN),
        ({"router_top_k": 3}, PLAIN),
        ({"tie_embeddings": True}, PLAIN - V * D),
        ({"qk_norm": True}, PLAIN + 2 * 2 * H),
        ({"head_dim": 10}, PLAIN + 2 * (10 - H) * (2 * D * N + 2 * D * G)),
        ({"num_kv_heads": 1}, PLAIN - 2 * 2 * D * (G - 1) * H),
        ({"rope_scope": "heads"}, PLAIN),
        ({"activation": "relu2"}, PLAIN - E * D * (64 + 128)),
        ({"activation": "gelu", "base_expansion": 3.0}, PLAIN - E * D * (64 + 128) + 2 * 2 * D * 64),
        ({"base_expansion": 0.5}, PLAIN + 2 * 3 * D * 64),  # 12, rounded up to the least width
        ({"base_expansion": 6.0, "router_type": "sigmoid"}, PLAIN + 2 * 3 * D * 128),  # 144, rounded
        ({"base_expansion": 3.0, "residual_mix": "learned"}, PLAIN + 2 * (3 * D * 64 + 2 * D)),
        ({"num_experts": 0, "base_expansion": 3.0}, PLAIN - sum(EXPERTS) + 2 * 3 * D * 64),
        ({"num_experts": (2, 7)}, 2 * V * D + D + 2 * BLOCK + 2 * (D + 3 * D * 64) + 7 * (D + 3 * D * 128)),
        ({"num_experts": (0, 5), "base_expansion": 3.0}, PLAIN - EXPERTS[0] + 2 * 3 * D * 64),
        ({"num_layers": 1}, PLAIN - BLOCK - EXPERTS[1]),
        ({"use_mtp": True}, PLAIN + D + EXPERTS[1] + 3 * V),
        ({"use_mtp": True, "base_expansion": 3.0}, PLAIN + D + EXPERTS[1] + 3 * V + 3 * 3 * D * 64),
    ],
)
def test_parameters_counted_by_hand(changes, expected):
    assert count_parameters(Transformer(tiny(**changes))) == expected


def large_by_hand(base: int, widths: list[int], num_experts: int) -> int:
    """24 layers of 896 with 28 query and 7 KV heads of 32, untied embeddings of 50,304."""
    attention = 896 * 896 + 2 * 896 * 224 + 896 * 896
    experts = sum(num_experts * (896 + 3 * 896 * width) for width in widths)
    return 2 * 50_304 * 896 + 896 + 24 * (2 * 896 + attention + 3 * 896 * base) + experts


@pytest.mark.parametrize(("config", "base", "lowest", "highest"), [(MAXIMUM_SPEED, 0, 3.0, 4.0), (STABILITY, 448, 2.0, 3.0)])
def test_both_recommendations_are_built_as_written(config, base, lowest, highest):
    with torch.device("meta"):
        model = Transformer(config)
    widths = [64 * round((lowest + (highest - lowest) * layer / 23) * 896 / 64) for layer in range(24)]
    assert (widths[0], widths[-1]) == (lowest * 896, highest * 896)
    assert count_parameters(model) == large_by_hand(base, widths, num_experts=4)


@pytest.mark.parametrize("config", [MAXIMUM_SPEED, STABILITY], ids=["maximum speed", "stability"])
def test_both_recommendations_train_shrunken(config):
    small = replace(config, vocab_size=V, dim=D, num_layers=2, num_heads=N, num_kv_heads=G)
    losses = train(seeded(0, small), steps=3)
    assert losses[0] > losses[1] > losses[2] > losses[3]


@pytest.mark.parametrize("activation", ["swiglu", "relu2", "gelu"])
@pytest.mark.parametrize("router", ROUTERS)
def test_every_variant_learns(router, activation):
    config = tiny(**ROUTERS[router], activation=activation)
    losses = train(seeded(0, config), steps=8)
    assert losses[-1] < 0.8 * losses[0]


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "everything": {
        "qk_norm": True,
        "base_expansion": 1.0,
        "residual_mix": "learned",
        "num_experts": (3, 5),
        "use_mtp": True,
        "router_z_loss_coeff": 0.1,
        "expert_dropout": 0.1,
        "rope_scope": "heads",
        "tie_embeddings": True,
    },
    "dense": {"num_experts": 0, "base_expansion": 1.0},
    "sigmoid": {"router_type": "sigmoid", "base_expansion": 1.0, "use_mtp": True},
    "switch": {"router_type": "switch", "gate_scale": 0.0},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_gets_a_gradient(variant):
    model = seeded(0, tiny(**VARIANTS[variant]))
    model.loss(random_tokens(model.config, batch=8), END).total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all() and parameter.grad.norm() > 0, name


@pytest.mark.parametrize("gate_scale", [1.0, 0.0])
@pytest.mark.parametrize("router", [name for name in ROUTERS if name != "softmax_top3"])
def test_at_one_expert_a_token_the_router_learns_from_the_loss_alone(router, gate_scale):
    """Renormalised, a top-1 gate would be the constant 1 and these gradients rounding errors."""
    config = tiny(**ROUTERS[router], aux_loss_coeff=0.0, renormalize_gates=True, gate_scale=gate_scale)
    model = seeded(0, config)
    model.loss(random_tokens(config)).total.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    routers = [gradient for name, gradient in gradients.items() if name.endswith("router.weight_ED")]
    assert len(routers) == config.num_layers
    for gradient_ED in routers:
        assert gradient_ED.norm() > 1e-4 * max(gradient.norm() for gradient in gradients.values())


def test_evaluation_is_deterministic_and_training_drops_out():
    model = seeded(0, tiny(expert_dropout=0.5))
    tokens_BS = random_tokens(model.config)[:, :S]
    assert not torch.equal(model(tokens_BS).logits_BSV, model(tokens_BS).logits_BSV)
    model.eval()
    assert torch.equal(model(tokens_BS).logits_BSV, model(tokens_BS).logits_BSV)


@pytest.mark.parametrize("variant", VARIANTS)
def test_bfloat16_autocast_stays_near_float32(variant):
    model = seeded(0, replace(tiny(**VARIANTS[variant]), expert_dropout=0.0))
    tokens_BL = random_tokens(model.config)
    exact = model.loss(tokens_BL)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.loss(tokens_BL)
    assert loss.total.dtype == torch.float32
    assert loss.next_token.item() == pytest.approx(exact.next_token.item(), rel=0.01)
    loss.total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.dtype == torch.float32 and parameter.grad.isfinite().all(), name


@pytest.mark.gpu
@pytest.mark.parametrize("has_documents", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_step_on_the_gpu_never_waits_for_it(variant, has_documents):
    config = tiny(**VARIANTS[variant])
    eager = ParallelConfig(compile="off")
    model = seeded(0, config, choose_backends(eager, "cuda", torch.bfloat16, has_documents)).cuda()
    tokens_BL = random_tokens(config).cuda()

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            loss = model.loss(tokens_BL, END if has_documents else None)
        loss.total.backward()

    step()
    torch.cuda.synchronize()
    with waiting_is_an_error():
        step()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


def train(model: Transformer, steps: int) -> list[float]:
    """The loss before each step and after the last, on one batch."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    tokens_BL = random_tokens(model.config)
    losses = []
    for step in range(steps + 1):
        loss = model.loss(tokens_BL).total
        losses.append(loss.item())
        if step < steps:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return losses
