"""The resumable state: saving it, loading it, and continuing as if nothing had happened."""

import json
from dataclasses import replace

import pytest
import torch

from moebius.config import Config
from moebius.config.optimizers import OPTIMIZERS
from moebius.errors import CheckpointError
from moebius.model.transformer import routed_layers, seeded
from moebius.train import checkpoint
from moebius.train.state import (
    SMALLEST_RAISED,
    TrainState,
    aux_coefficients,
    check_model,
    is_finite,
    model_tensors,
)
from moebius.train.step import train_step
from tests.observe.made_up import metrics_of
from tests.train.models import copied
from tests.train.states import TOKENS, TRAIN, V, config_of

B = TRAIN.batch_size


def new_state(config: Config, seed: int = 0, corpus: str = "a text") -> TrainState:
    return TrainState.new(seeded(seed, config.model), config, corpus)


def take_steps(state: TrainState, config: Config, count: int) -> None:
    """Train on random tokens from torch's global generator, which dropout uses, too."""
    for _ in range(count):
        tokens_BL = torch.randint(V, (TRAIN.batch_size, TRAIN.seq_len + 1))
        train_step(state, tokens_BL, None, config.train)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_loaded_state_goes_on_bit_identically(tmp_path, optimizer):
    config = config_of(optimizer, expert_dropout=0.3, tie_embeddings=True, router_bias_rate=0.01)
    torch.manual_seed(5)
    state = new_state(config)
    take_steps(state, config, 2)
    state.aux_levels[1], state.rollbacks, state.skipped = 3, 1, 2
    folder = checkpoint.save(tmp_path / "step-00000002", *state.captured())
    take_steps(state, config, 2)

    torch.manual_seed(6)  # in a new process, the generator's state is arbitrary
    loaded = new_state(config, seed=1)
    loaded.load(folder)
    assert (loaded.step, loaded.sequences, loaded.tokens) == (2, 2 * B, 2 * TOKENS)
    assert (loaded.aux_levels, loaded.rollbacks, loaded.skipped) == ([0, 3], 1, 2)
    take_steps(loaded, config, 2)
    tensors, values = state.captured()
    loaded_tensors, loaded_values = loaded.captured()
    assert values == loaded_values
    for group in ("model", "optimizer", "random"):
        assert tensors[group].keys() == loaded_tensors[group].keys()
        for name, tensor in tensors[group].items():
            assert torch.equal(tensor, loaded_tensors[group][name]), name


def test_the_alarms_are_part_of_the_state(tmp_path):
    config = config_of()
    state = new_state(config)
    state.alarms.look(metrics_of(step=1, cv=[0.9, 0.0, 0.9]))
    folder = checkpoint.save(tmp_path / "step-00000000", *state.captured())
    loaded = new_state(config)
    assert loaded.alarms.state() != state.alarms.state()
    loaded.load(folder)
    assert loaded.alarms.state() == state.alarms.state()


def test_captured_values_are_json_and_copies():
    state = new_state(config_of())
    _, values = state.captured()
    assert json.loads(json.dumps(values)) == values
    assert values["aux_levels"] == [0, 0] and values["corpus"] == "a text"
    state.aux_levels[0] = 4
    assert values["aux_levels"] == [0, 0]


def test_captured_tensors_are_those_that_training_changes():
    config = config_of()
    state = new_state(config)
    tensors, _ = state.captured()
    before = copied(tensors["model"])
    take_steps(state, config, 1)
    weight = "layers.0.moe.experts.w_up_EDF"
    assert torch.equal(tensors["model"][weight], dict(state.model.named_parameters())[weight])
    assert not torch.equal(tensors["model"][weight], before[weight])


def test_a_state_of_another_text_is_refused(tmp_path):
    config = config_of()
    folder = checkpoint.save(tmp_path / "step-00000000", *new_state(config).captured())
    with pytest.raises(CheckpointError, match="trained on another text"):
        new_state(config, corpus="another text").load(folder)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"num_layers": 1}, r"another model; it differs at layers\.1\..*, layers\.1\..*, layers"),
        ({"tie_embeddings": True}, r"another model; it differs at lm_head\.weight$"),
        ({"vocab_size": 67}, r"embedding\.weight is \[61, 48\], the model's is \[67, 48\]"),
    ],
)
def test_weights_of_another_model_are_refused(tmp_path, changes, match):
    tensors = model_tensors(new_state(config_of()).model)
    model = new_state(config_of(**changes)).model
    with pytest.raises(CheckpointError, match=match):
        check_model(model, tensors, tmp_path)


def test_a_models_tensors_are_its_parameters_and_routing_biases():
    model = new_state(config_of(tie_embeddings=True)).model
    names = model_tensors(model).keys()
    assert names == model.state_dict().keys() - {"lm_head.weight"}
    assert "layers.1.moe.router.bias_E" in names


def test_each_level_doubles_the_weight_of_a_layers_balance_loss():
    state = new_state(config_of(aux_loss_coeff=0.02))
    state.aux_levels = [0, 3]
    assert aux_coefficients(state) == [0.02, pytest.approx(0.16)]


def test_raising_a_balance_loss_of_zero_starts_at_a_smallest_weight():
    state = new_state(config_of(aux_loss_coeff=0.0))
    assert aux_coefficients(state) == [0.0, 0.0]
    state.aux_levels = [1, 0]
    assert aux_coefficients(state) == [2 * SMALLEST_RAISED, 0.0]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_model_is_finite_if_all_its_weights_are(value):
    model = new_state(config_of()).model
    assert is_finite(model)
    with torch.no_grad():
        routed_layers(model)[1].experts.w_down_EFD[3, 0, 0] = value
    assert not is_finite(model)


def test_a_dense_model_has_no_balance_losses():
    config = config_of(num_experts=0, base_expansion=1.0)
    state = new_state(replace(config, train=replace(config.train, optimizer="muon")))
    assert state.aux_levels == aux_coefficients(state) == []
