"""What is written down about each optimizer agrees with what the optimizer keeps."""

from typing import get_args

import pytest
import torch

from moebius.config import TrainConfig
from moebius.config.fields import annotations
from moebius.config.optimizers import OPTIMIZERS
from moebius.train.optimizer import build_optimizers, is_hidden_matrix
from tests.train.models import small_model


def test_every_optimizer_can_be_chosen():
    assert set(get_args(annotations(TrainConfig)["optimizer"])) == set(OPTIMIZERS)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_record_counts_the_moments_of_every_parameter(name):
    """Memory estimates use the record. This compares it with the state of a real optimizer."""
    model = small_model()
    optimizers = build_optimizers(model, TrainConfig(optimizer=name))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    for optimizer in optimizers:
        optimizer.step()
    record = OPTIMIZERS[name]
    hidden = {"layers.0.attention.query.weight", "layers.1.moe.experts.w_up_EDF"}
    for parameter_name, parameter in model.named_parameters():
        states = [
            value
            for optimizer in optimizers
            for value in optimizer.state.get(parameter, {}).values()
            if value.numel() > 1
        ]
        is_hidden = is_hidden_matrix(parameter_name, parameter)
        assert is_hidden or parameter_name not in hidden
        expected = record.hidden_moments if is_hidden else record.moments
        assert len(states) == expected, parameter_name
        for value in states:
            assert (value.shape, value.dtype) == (parameter.shape, torch.float32)
