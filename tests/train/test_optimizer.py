"""Which optimizer updates which parameter, and with what settings."""

import pytest
import torch
from torch import nn

from moebius.config import TrainConfig
from moebius.config.optimizers import OPTIMIZERS
from moebius.train.muon import Muon
from moebius.train.optimizer import (
    _BUILDERS,
    build_optimizers,
    set_learning_rate,
    skip_update_if,
)
from tests.train.models import small_model


def treatments(model: nn.Module, config: TrainConfig) -> dict[str, tuple[str, float]]:
    """Return each parameter's optimizer and weight decay.

    Fails if a parameter has no optimizer, or more than one.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    pairs = [
        (names[parameter], (type(optimizer).__name__, group["weight_decay"]))
        for optimizer in build_optimizers(model, config)
        for group in optimizer.param_groups
        for parameter in group["params"]
    ]
    assert sorted(name for name, _ in pairs) == sorted(names.values())
    return dict(pairs)


def test_an_optimizer_that_can_be_configured_can_be_built():
    assert _BUILDERS.keys() == OPTIMIZERS.keys()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_parameter_has_its_treatment(optimizer):
    treatment_of = treatments(small_model(), TrainConfig(optimizer=optimizer, weight_decay=0.1))
    hidden = ("Muon", 0.1) if optimizer == "muon" else ("AdamW", 0.1)
    expected = {
        "embedding.weight": ("AdamW", 0.0),
        "lm_head.weight": ("AdamW", 0.1),
        "norm.weight": ("AdamW", 0.0),
        "mtp.bias_OV": ("AdamW", 0.0),
        "mtp.moe.experts.w_up_EDF": hidden,
        "layers.0.attention.query.weight": hidden,
        "layers.0.attention.output.weight": hidden,
        "layers.1.attention_norm.weight": ("AdamW", 0.0),
        "layers.1.moe.router.weight_ED": ("AdamW", 0.1),
        "layers.1.moe.mix.weight": ("AdamW", 0.1),
        "layers.1.moe.base.up.weight": hidden,
        "layers.1.moe.experts.w_gate_EDF": hidden,
        "layers.1.moe.experts.w_down_EFD": hidden,
    }
    assert {name: treatment_of[name] for name in expected} == expected
    num_muon = sum(name == "Muon" for name, _ in treatment_of.values())
    # There are two layers with attention, base MLP and experts. The MTP layer has no attention.
    assert num_muon == (2 * (4 + 3 + 3) + (3 + 3) if optimizer == "muon" else 0)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_tied_embedding_appears_once(optimizer):
    model = small_model(tie_embeddings=True)
    treatment_of = treatments(model, TrainConfig(optimizer=optimizer))
    assert treatment_of["embedding.weight"] == ("AdamW", 0.0)
    assert "lm_head.weight" not in treatment_of


def test_a_model_of_hidden_matrices_alone_needs_no_adamw():
    optimizers = build_optimizers(nn.Linear(5, 7, bias=False), TrainConfig(optimizer="muon"))
    assert [type(optimizer) for optimizer in optimizers] == [Muon]


def test_adamw_is_fused_and_says_so_where_it_cannot_be():
    (optimizer,) = build_optimizers(nn.Linear(5, 7), TrainConfig())
    assert all(group["fused"] for group in optimizer.param_groups)
    with pytest.warns(UserWarning, match="no fused one for meta"):
        (optimizer,) = build_optimizers(nn.Linear(5, 7, device="meta"), TrainConfig())
    assert not any(group["fused"] for group in optimizer.param_groups)


def test_the_learning_rate_reaches_every_group():
    optimizers = build_optimizers(small_model(), TrainConfig(optimizer="muon"))
    set_learning_rate(optimizers, 0.125)
    rates = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    assert rates == [0.125] * 3


@pytest.mark.parametrize("is_fused", [True, False])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_update_is_skipped_exactly_when_it_is_broken(name, is_fused):
    model = nn.Linear(5, 7)
    optimizers = build_optimizers(model, TrainConfig(optimizer=name, lr=0.5))
    if not is_fused:
        for optimizer in optimizers:
            optimizer.param_groups[0]["fused"] = optimizer.defaults["fused"] = None
    start = [parameter.detach().clone() for parameter in model.parameters()]
    for is_broken in (True, False):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, torch.nan if is_broken else 1.0)
        skip_update_if(torch.tensor(is_broken), optimizers)
        for optimizer in optimizers:
            optimizer.step()
        is_same = [
            torch.equal(parameter, before)
            for parameter, before in zip(model.parameters(), start, strict=True)
        ]
        assert is_same == [is_broken] * 2
