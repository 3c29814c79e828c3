"""Checkpointing keeps less for backward and changes neither a gradient nor a count."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy

from moebius.config import ParallelConfig
from moebius.model.transformer import seeded
from moebius.parallel import recompute
from moebius.parallel.recompute import KEPT_OPERATORS
from tests.parallel.models import SMALL, VARIANTS, laid_out, loss_and_gradients, tokens_of


def test_the_kept_operators():
    assert {
        "aten.mm",
        "aten.addmm",
        "aten.bmm",
        "aten._grouped_mm",
        "moebius.float8_product",
        "moebius.experts_forward",
        "moebius.router_logits",
        "moebius.choose_experts",
        "moebius.routing_sums",
        "aten._scaled_dot_product_flash_attention",
        "aten._scaled_dot_product_flash_attention_for_cpu",
        "aten._scaled_dot_product_efficient_attention",
        "aten._scaled_dot_product_cudnn_attention",
        "flex_attention",
    } == KEPT_OPERATORS


@pytest.mark.parametrize("backend", ["loop", "grouped"])
@pytest.mark.parametrize("checkpointing", ["full", "selective"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_checkpointing_changes_nothing(variant, checkpointing, backend):
    plain = ParallelConfig(expert_backend=backend)
    checkpointed = replace(plain, activation_checkpointing=checkpointing)
    expected_loss, expected = loss_and_gradients(VARIANTS[variant], plain)
    loss, gradients = loss_and_gradients(VARIANTS[variant], checkpointed)
    assert torch.equal(loss.total, expected_loss.total)
    assert gradients.keys() == expected.keys()
    assert gradients.keys() == dict(seeded(0, VARIANTS[variant]).named_parameters()).keys()
    for name, gradient in gradients.items():
        assert torch.equal(gradient, expected[name]), name
    for layer, expected_layer in zip(loss.stats, expected_loss.stats, strict=True):
        assert torch.equal(layer.tokens_per_expert_E, expected_layer.tokens_per_expert_E)


def bytes_kept(parallel: ParallelConfig) -> int:
    """Return the bytes that autograd keeps for backward, without the weights."""
    sizes: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    model = laid_out(replace(SMALL, expert_dropout=0.0), parallel)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = model.loss(tokens_of(4, 33))
    assert loss.total.requires_grad
    return sum(sizes.values()) - sum(parameter.nbytes for parameter in model.parameters())


def test_what_is_expensive_is_kept_and_the_rest_is_not():
    """Full checkpointing keeps less than selective, which keeps the results of products."""
    full, selective = (
        bytes_kept(ParallelConfig(activation_checkpointing=kind, expert_backend="grouped"))
        for kind in ("full", "selective")
    )
    assert full < 0.9 * selective


@pytest.mark.parametrize("operator", sorted(KEPT_OPERATORS))
def test_every_expensive_operator_is_saved(operator):
    assert policy(f"{operator}.default") == policy(operator) == CheckpointPolicy.MUST_SAVE
    assert policy(f"{operator}_backward.default") == CheckpointPolicy.PREFER_RECOMPUTE


def policy(operator: str) -> CheckpointPolicy:
    """Return what selective checkpointing does with the results of an operator."""
    return recompute._policy(None, operator)


@pytest.mark.parametrize("checkpointing", ["full", "selective"])
def test_checkpointing_keeps_less(checkpointing):
    kept = bytes_kept(ParallelConfig(activation_checkpointing=checkpointing))
    assert kept < 0.7 * bytes_kept(ParallelConfig())
