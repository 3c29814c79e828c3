"""Experts that share their beginning."""

import pytest
import torch
from torch import Tensor, nn

from moebius.config import ModelConfig, TrainConfig
from moebius.model.transformer import Transformer, seeded
from moebius.train.common_start import share_expert_gradients, tie_experts
from moebius.train.optimizer import build_optimizers


def small_model(use_mtp: bool = False) -> Transformer:
    shape = ModelConfig(vocab_size=61, dim=32, num_layers=2, num_heads=2, num_kv_heads=1, num_experts=3, use_mtp=use_mtp)
    return seeded(0, shape)


def expert_weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter for name, parameter in model.named_parameters() if "experts." in name}


def test_tied_experts_are_the_first_one():
    model = small_model(use_mtp=True)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    tie_experts(model)
    assert len(expert_weights(model)) == 3 * 3  # gate, up and down of two layers and of multi-token prediction
    for name, parameter in model.named_parameters():
        expected = before[name][:1].expand_as(parameter) if "experts." in name else before[name]
        assert torch.equal(parameter, expected), name


def test_every_expert_gets_its_share_and_nothing_else_changes():
    model = small_model()
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    before = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    share_expert_gradients(model)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        if "experts." in name:
            by_hand = (before[name][0] + before[name][1] + before[name][2]) / 3**0.5
            for expert in range(3):
                torch.testing.assert_close(parameter.grad[expert], by_hand)
            assert torch.equal(parameter.grad, parameter.grad[:1].expand_as(parameter.grad)), name
            torch.testing.assert_close(parameter.grad.norm(), before[name].sum(dim=0).norm())
        else:
            assert torch.equal(parameter.grad, before[name]), name


def test_parameters_without_a_gradient_are_left_alone():
    model = small_model()
    share_expert_gradients(model)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_experts_that_start_equal_stay_equal_until_released(optimizer):
    model = small_model()
    tie_experts(model)
    optimizers = build_optimizers(model, TrainConfig(optimizer=optimizer, lr=1e-2))
    start = {name: parameter.detach().clone() for name, parameter in expert_weights(model).items()}

    def step(is_common: bool) -> None:
        model.loss(torch.randint(61, (2, 17))).total.backward()
        if is_common:
            share_expert_gradients(model)
        for each in optimizers:
            each.step()
            each.zero_grad()

    for _ in range(3):
        step(is_common=True)
    for name, weight in expert_weights(model).items():
        assert torch.equal(weight, weight[:1].expand_as(weight)), name
        assert not torch.equal(weight, start[name]), name
    step(is_common=False)
    assert not any(torch.equal(weight, weight[:1].expand_as(weight)) for weight in expert_weights(model).values())
