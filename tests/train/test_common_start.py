"""Experts that start equal, share their gradients, and diverge once they no longer do."""

import pytest
import torch
from torch import Tensor, nn

from moebius.config import ModelConfig, TrainConfig
from moebius.model.transformer import Transformer, seeded
from moebius.train.common_start import share_expert_gradients, tie_experts
from moebius.train.optimizer import build_optimizers
from tests.train.models import copied


def small_model(use_mtp: bool = False) -> Transformer:
    shape = ModelConfig(
        vocab_size=61,
        dim=32,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        num_experts=3,
        use_mtp=use_mtp,
    )
    return seeded(0, shape)


def expert_weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter for name, parameter in model.named_parameters() if "experts." in name}


def test_tied_experts_are_the_first_one():
    model = small_model(use_mtp=True)
    before = copied(dict(model.named_parameters()))
    tie_experts(model)
    # There are gate, up and down matrices in two layers and in the MTP layer.
    assert len(expert_weights(model)) == 3 * 3
    for name, parameter in model.named_parameters():
        expected = before[name][:1].expand_as(parameter) if "experts." in name else before[name]
        assert torch.equal(parameter, expected), name


def test_every_expert_gets_its_share_and_nothing_else_changes():
    model = small_model()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    before = {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
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


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_experts_that_start_equal_stay_equal_until_released(name):
    model = small_model()
    tie_experts(model)
    optimizers = build_optimizers(model, TrainConfig(optimizer=name, lr=1e-2))
    start = copied(expert_weights(model))

    def take_step(number: int, is_common: bool) -> None:
        generator = torch.Generator().manual_seed(number)
        model.loss(torch.randint(61, (2, 17), generator=generator)).total.backward()
        if is_common:
            share_expert_gradients(model)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    for number in range(3):
        take_step(number, is_common=True)
    for weight_name, weight in expert_weights(model).items():
        assert torch.equal(weight, weight[:1].expand_as(weight)), weight_name
        assert not torch.equal(weight, start[weight_name]), weight_name
    take_step(3, is_common=False)
    assert not any(
        torch.equal(weight, weight[:1].expand_as(weight))
        for weight in expert_weights(model).values()
    )
