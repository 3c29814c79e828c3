"""The optimizers' state as named tensors: it is complete, exact, and refused if it differs."""

import pytest
import torch

from moebius.config import TrainConfig
from moebius.config.optimizers import OPTIMIZERS
from moebius.errors import CheckpointError
from moebius.train.optimizer import build_optimizers
from moebius.train.optimizer_state import check_named_state, load_named_state, named_state
from tests.train.models import are_equal, copied, small_model, take_steps


@pytest.mark.parametrize("num_steps_before", [0, 3])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_fresh_optimizer_continues_bit_identically(name, num_steps_before):
    config = TrainConfig(optimizer=name, lr=1e-2)
    model = small_model()
    optimizers = build_optimizers(model, config)
    take_steps(model, optimizers, range(num_steps_before))
    weights = copied(model.state_dict())
    saved = copied(named_state(optimizers, model))

    fresh_model = small_model()
    fresh_model.load_state_dict(weights)
    fresh_optimizers = build_optimizers(fresh_model, config)
    load_named_state(fresh_optimizers, fresh_model, saved)
    loaded = named_state(fresh_optimizers, fresh_model)
    assert all(torch.equal(value, saved[key]) for key, value in loaded.items())

    steps = range(num_steps_before, num_steps_before + 3)
    take_steps(model, optimizers, steps)
    take_steps(fresh_model, fresh_optimizers, steps)
    assert are_equal(model, fresh_model)
    state = named_state(optimizers, model)
    fresh_state = named_state(fresh_optimizers, fresh_model)
    assert state.keys() == fresh_state.keys()
    assert all(torch.equal(state[key], fresh_state[key]) for key in state)


def test_reading_the_state_of_a_new_optimizer_changes_nothing():
    models = [small_model(), small_model()]
    for model, is_read in zip(models, [True, False], strict=True):
        optimizers = build_optimizers(model, TrainConfig(optimizer="muon", lr=1e-2))
        if is_read:
            named_state(optimizers, model)
        take_steps(model, optimizers, range(2))
    assert are_equal(*models)


def test_state_is_named_after_parameters_and_complete():
    model = small_model()
    state = named_state(build_optimizers(model, TrainConfig(optimizer="muon")), model)
    assert state["layers.0.moe.experts.w_up_EDF/momentum"].shape == (3, 32, 64)
    assert state["embedding.weight/exp_avg"].shape == (61, 32)
    assert state["embedding.weight/exp_avg_sq"].shape == (61, 32)
    assert state["embedding.weight/step"].shape == ()
    names = {name for name, _ in model.named_parameters()}
    assert {name.rpartition("/")[0] for name in state} == names


def test_state_that_does_not_fit_is_refused_and_nothing_is_loaded():
    model = small_model()
    optimizers = build_optimizers(model, TrainConfig())
    take_steps(model, optimizers, range(1))
    good = copied(named_state(optimizers, model))
    name = "layers.1.moe.experts.w_up_EDF/exp_avg"
    without = {key: torch.ones_like(value) for key, value in good.items() if key != name}
    bad = {
        r"missing: layers\.1.*w_up_EDF/exp_avg;": without,
        r"missing: .*, .*, .* and \d+ more;": {},
        r"unexpected: layers\.9.*/exp_avg;": (good | {"layers.9.weight/exp_avg": torch.zeros(3)}),
        r"exp_avg is \[3, 128, 32\] torch\.float32, not \[3, 32, 128\]": (
            good | {name: good[name].mT}
        ),
        r"exp_avg is \[3, 32, 128\] torch\.bfloat16": good | {name: good[name].bfloat16()},
    }
    for message, tensors in bad.items():
        with pytest.raises(CheckpointError, match=message) as refusal:
            check_named_state(optimizers, model, tensors)
        assert "\n" not in str(refusal.value)
        state = named_state(optimizers, model)
        assert all(torch.equal(value, good[key]) for key, value in state.items())


def test_state_of_the_other_optimizer_is_refused():
    model = small_model()
    muon = named_state(build_optimizers(model, TrainConfig(optimizer="muon")), model)
    with pytest.raises(CheckpointError, match=r"train\.optimizer"):
        check_named_state(build_optimizers(model, TrainConfig()), model, muon)
