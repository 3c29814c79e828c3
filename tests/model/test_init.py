"""The distribution of every parameter, compared with the rules of initialization."""

import math

import pytest
import torch

from moebius.config import ModelConfig
from moebius.model.transformer import Transformer, seeded
from moebius.moe.router import Router
from tests.model.tiny import tiny

V, D, N, G, H, E = 509, 96, 6, 3, 20, 5
BASE, WIDTHS, NUM_LAYERS = 64, (128, 192, 256), 3
RESIDUAL = 1 / math.sqrt(2 * NUM_LAYERS)


def config(**changes) -> ModelConfig:
    shape = {
        "vocab_size": V,
        "dim": D,
        "num_layers": NUM_LAYERS,
        "num_heads": N,
        "num_kv_heads": G,
        "head_dim": H,
    }
    experts = {"num_experts": E, "moe_min_expansion": 1.0, "moe_max_expansion": 2.67}
    base = {"base_expansion": 0.67, "residual_mix": "learned", "qk_norm": True, "use_mtp": True}
    return tiny(**{**shape, **experts, **base, **changes})


def expected_deviations() -> dict[str, float]:
    """Return the standard deviation of every parameter by name.

    It is 1 / sqrt(fan-in), divided by sqrt(2 * layers) for matrices that write to the stream.
    """
    into, wide = 1 / math.sqrt(D), 1 / math.sqrt(N * H)
    deviations = {"embedding.weight": into, "lm_head.weight": 0.1 * into}
    moes = {f"layers.{layer}.moe": width for layer, width in enumerate(WIDTHS)}
    moes["mtp.moe"] = WIDTHS[-1]
    for layer in range(NUM_LAYERS):
        deviations |= {
            f"layers.{layer}.attention.{name}.weight": into for name in ("query", "key", "value")
        }
        deviations[f"layers.{layer}.attention.output.weight"] = wide * RESIDUAL
    for name, width in moes.items():
        deviations |= {f"{name}.base.gate.weight": into, f"{name}.base.up.weight": into}
        deviations[f"{name}.base.down.weight"] = RESIDUAL / math.sqrt(BASE)
        deviations |= {f"{name}.experts.w_gate_EDF": into, f"{name}.experts.w_up_EDF": into}
        deviations[f"{name}.experts.w_down_EFD"] = RESIDUAL / math.sqrt(width)
        # The router itself divides by sqrt(D).
        deviations[f"{name}.router.weight_ED"] = 0.1
    return deviations


def test_every_weight_has_the_variance_of_its_fan_in():
    model = seeded(0, config())
    deviations = expected_deviations()
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            assert (parameter == 1).all(), name
        elif name.endswith(("mix.weight", "bias_OV")):
            assert (parameter == 0).all(), name
        else:
            sampling_error = 1 / math.sqrt(2 * parameter.numel())
            expected = deviations.pop(name)
            assert parameter.std().item() == pytest.approx(expected, rel=5 * sampling_error), name
            assert abs(parameter.mean().item()) < 5 * expected / math.sqrt(parameter.numel()), name
    assert not deviations


def test_a_tied_embedding_is_small():
    weight = seeded(0, config(tie_embeddings=True)).embedding.weight
    assert weight.std().item() == pytest.approx(0.02, rel=0.02)


def test_the_number_of_experts_scales_nothing_and_all_start_different():
    few, many = (
        dict(seeded(0, config(num_experts=count)).named_parameters()) for count in (2, 16)
    )
    for name in (
        f"layers.0.moe.experts.{matrix}" for matrix in ("w_gate_EDF", "w_up_EDF", "w_down_EFD")
    ):
        assert few[name].std().item() == pytest.approx(many[name].std().item(), rel=0.03)
        by_expert = many[name].flatten(1)
        assert by_expert.std(dim=1).tolist() == pytest.approx(
            [by_expert.std().item()] * 16, rel=0.05
        )
        assert by_expert.corrcoef().fill_diagonal_(0).abs().max() < 0.1


@pytest.mark.parametrize("num_layers", [1, 12])
def test_the_stream_keeps_its_size_at_any_depth(num_layers):
    model = seeded(0, config(num_layers=num_layers))
    tokens_BS = torch.randint(V, (4, 32))
    hidden_BSD, _ = model.hidden(tokens_BS)
    assert model.embed(tokens_BS).var().item() == pytest.approx(1, rel=0.1)
    # All blocks together add less than the variance that the embedding starts with.
    assert 1 < hidden_BSD.var().item() < 2


@pytest.mark.parametrize("tie_embeddings", [False, True])
@pytest.mark.parametrize(
    "variant", [{}, {"num_experts": 0}, {"base_expansion": 0.0}, {"router_type": "sigmoid"}]
)
def test_the_first_loss_is_that_of_a_guess(tie_embeddings, variant):
    model = seeded(0, config(tie_embeddings=tie_embeddings, **variant))
    loss = model.loss(torch.randint(V, (4, 36)))
    assert loss.mtp is not None
    assert loss.next_token.item() == pytest.approx(math.log(V), rel=0.05)
    assert loss.mtp.item() == pytest.approx(math.log(V), rel=0.05)


@pytest.mark.parametrize("router_type", ["softmax_topk", "switch"])
def test_routers_start_undecided(router_type):
    model = seeded(0, config(router_type=router_type, capacity_factor=float(E)))
    router = next(module for module in model.modules() if isinstance(module, Router))
    routing = router(torch.randn(1000, D))
    assert routing.probs_TE.mean(dim=0).tolist() == pytest.approx([1 / E] * E, abs=0.01)
    assert routing.gate_TK.max() < 2 / E


def test_a_model_can_be_built_on_the_meta_device():
    with torch.device("meta"):
        model = Transformer(config())
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
