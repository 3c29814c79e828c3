"""The whole model: its loss, its weights, and that every variant learns."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from moebius.config import ParallelConfig
from moebius.hardware.backends import choose_backends
from moebius.model.loss import documents
from moebius.model.transformer import Transformer, seeded
from moebius.moe.balance import balance_losses
from tests.config.founding import MAXIMUM_SPEED, STABILITY
from tests.model.tiny import (
    ROUTERS,
    B,
    D,
    G,
    N,
    S,
    V,
    decided,
    random_tokens,
    tiny,
    waiting_is_an_error,
)

END = 0


def test_the_loss_is_the_cross_entropy_of_the_logits():
    model = decided(tiny(aux_loss_coeff=0.3, router_z_loss_coeff=0.2))
    tokens_BL = random_tokens(model.config)
    tokens_BL[0, 3] = tokens_BL[1, 5] = END
    document_BS = documents(tokens_BL, END)[:, :S]
    loss = model.loss(tokens_BL, END)
    output = model(tokens_BL[:, :S], document_BS)
    logprob_BSV = output.logits_BSV.log_softmax(dim=-1)
    by_hand = -torch.stack(
        [logprob_BSV[b, t, tokens_BL[b, t + 1]] for b in range(B) for t in range(S)]
    ).mean()
    torch.testing.assert_close(loss.next_token.double(), by_hand, rtol=0, atol=1e-5)
    balance = balance_losses(output.stats)
    parts = sum(
        0.3 * balance[i] + 0.2 * layer.squared_log_partition / layer.tokens
        for i, layer in enumerate(output.stats)
    )
    torch.testing.assert_close(loss.total.double(), by_hand + parts, rtol=0, atol=1e-5)
    assert not torch.equal(loss.next_token, model.loss(tokens_BL).next_token)


def test_seeded_is_reproducible():
    first, second, different = (
        seeded(seed, tiny(use_mtp=True)).state_dict() for seed in (3, 3, 4)
    )
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name])
        is_constant = name.endswith(("norm.weight", "bias_OV", "bias_E"))
        assert torch.equal(value, different[name]) == is_constant, name


def test_tied_embeddings_are_one_parameter():
    model = seeded(0, tiny(tie_embeddings=True))
    assert model.lm_head.weight is model.embedding.weight
    tokens_BL = random_tokens(model.config)
    model.loss(tokens_BL).total.backward()
    gradient = model.embedding.weight.grad
    # The head also gives a gradient to tokens that were not read.
    assert gradient is not None and (gradient.norm(dim=1) > 0).all()
    untied = seeded(0, tiny())
    assert untied.lm_head.weight.data_ptr() != untied.embedding.weight.data_ptr()


@pytest.mark.parametrize("config", [MAXIMUM_SPEED, STABILITY], ids=["maximum speed", "stability"])
def test_both_recommendations_train_at_a_small_size(config):
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
def test_with_one_expert_per_token_the_router_learns_from_the_loss_alone(router, gate_scale):
    """With a renormalized top-1 gate, the constant 1, these gradients would be rounding errors."""
    config = tiny(
        **ROUTERS[router], aux_loss_coeff=0.0, renormalize_gates=True, gate_scale=gate_scale
    )
    model = seeded(0, config)
    model.loss(random_tokens(config)).total.backward()
    norms = {
        name: parameter.grad.norm()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    routers = [norm for name, norm in norms.items() if name.endswith("router.weight_ED")]
    assert len(routers) == config.num_layers
    assert min(routers) > 1e-4 * max(norms.values())


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
        assert parameter.grad is not None, name
        assert parameter.grad.dtype == torch.float32 and parameter.grad.isfinite().all(), name


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
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def train(model: Transformer, steps: int) -> list[float]:
    """Return the loss on one batch before each step and after the last."""
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
