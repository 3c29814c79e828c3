"""Tests of models that take turns."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from moebius.config import Config, ModelConfig, TrainConfig


def test_a_model_that_cannot_start_says_why(script):
    config = Config(train=TrainConfig(device="cuda:99"))
    error = script("interleaved_models")._start(config)
    assert error.startswith("ConfigError: train.device='cuda:99'")


@pytest.mark.heavy
def test_models_take_turns(script):
    model = ModelConfig(
        vocab_size=512,
        dim=64,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        moe_min_expansion=4,
        moe_max_expansion=4,
    )
    config = Config(model=model, train=TrainConfig(device="cpu", batch_size=4, seq_len=256))
    (timed,) = script("interleaved_models").models_in_turns({"small": config}, rounds=6).values()
    assert timed.config.train.micro_batch_size == 4
    assert 0 < min(timed.forward.seconds) < min(timed.step.seconds)
    assert len(timed.step.seconds) == 6
    assert timed.tokens_per_second == pytest.approx(1024 / timed.step.ms * 1e3)


@pytest.mark.parametrize(("needs", "most_at_once"), [((5, 5), 2), ((6, 6), 1), ((11, 1), 1)])
def test_work_goes_on_side_by_side_while_it_fits(script, needs, most_at_once):
    admission = script("interleaved_models")._Admission(10.0)
    working: list[int] = []

    def work(need: float) -> None:
        with admission.of(need):
            working.append(admission.working)
            time.sleep(0.02)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(work, needs))
    assert max(working) == most_at_once
