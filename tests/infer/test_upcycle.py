"""Dense models that become mixtures of experts and compute the same at first."""

import pytest
import torch

from moebius.errors import ConfigError
from moebius.infer.upcycle import Upcycling, upcycled, upcycled_config
from moebius.model.transformer import Transformer
from moebius.train.state import load_model, model_tensors
from tests.infer.stock import V, model_config, transformer

DENSE = {"num_experts": 0, "base_expansion": 4.0, "router_top_k": 1}


@pytest.mark.parametrize("activation", ["swiglu", "relu2", "gelu"])
@pytest.mark.parametrize(
    "text",
    [
        "num_experts=8",
        "num_experts=8,granularity=2",
        "num_experts=3,granularity=4,top_k=8",
        "num_experts=4,granularity=2,top_k=8",
        "num_experts=1,granularity=2",
    ],
)
def test_the_first_loss_is_that_of_the_dense_model(text, activation):
    dense = transformer(model_config(**DENSE, activation=activation))
    upcycling = Upcycling.parse(text)
    config = upcycled_config(dense.config, upcycling)
    mixture = Transformer(config)
    load_model(mixture, upcycled(model_tensors(dense), config, upcycling, seed=0))
    tokens_BL = torch.randint(V, (4, 65), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        before, after = dense.loss(tokens_BL), mixture.loss(tokens_BL)
    assert float(after.next_token) == pytest.approx(float(before.next_token), rel=1e-6)
    assert config.num_experts == upcycling.num_experts * upcycling.granularity
    assert config.base_width == 0


def test_experts_are_copies_and_routers_are_new():
    dense = transformer(model_config(**DENSE))
    upcycling = Upcycling.parse("num_experts=3,granularity=2")
    config = upcycled_config(dense.config, upcycling)
    tensors = upcycled(model_tensors(dense), config, upcycling, seed=0)
    up_EDF, router_ED = (
        tensors[f"layers.0.moe.{n}"] for n in ("experts.w_up_EDF", "router.weight_ED")
    )
    assert up_EDF.shape == (6, 64, 128)
    assert torch.equal(up_EDF[0], up_EDF[2]) and not torch.equal(up_EDF[0], up_EDF[1])
    whole = torch.cat([up_EDF[4].T, up_EDF[5].T])
    assert torch.equal(whole, model_tensors(dense)["layers.0.moe.base.up.weight"])
    assert torch.equal(router_ED[0], router_ED[1]) and not torch.equal(router_ED[0], router_ED[2])
    again = upcycled(model_tensors(dense), config, upcycling, seed=1)
    assert not torch.equal(again["layers.0.moe.router.weight_ED"], router_ED)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("8", "must be num_experts=N"),
        ("num_experts=8,num_experts=9", "must be num_experts=N"),
        ("num_experts=eight", "must be num_experts=N"),
        ("granularity=2", "num_experts=N is missing"),
        ("num_experts=0", "at least 1"),
        ("num_experts=4,granularity=0", "at least 1"),
        ("num_experts=4,top_k=1", "at least 2"),
        ("num_experts=4,granularity=2,top_k=3", "a multiple of the granularity (2)"),
        ("num_experts=1", "at most 1"),
    ],
)
def test_options_that_make_no_sense(text, reason):
    with pytest.raises(ConfigError) as refused:
        Upcycling.parse(text)
    assert reason in str(refused.value) and "--upcycle" in str(refused.value)


def test_models_that_cannot_be_upcycled():
    with pytest.raises(ConfigError, match="has experts already"):
        upcycled_config(model_config(), Upcycling(4))
    dense = model_config(**DENSE)
    with pytest.raises(ConfigError, match=r"parts of 32, which is no multiple of 64"):
        upcycled_config(dense, Upcycling(4, granularity=8))
