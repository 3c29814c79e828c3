"""Which values the settings of training refuse."""

import pytest

from moebius.config import TrainConfig
from tests.config.refusals import Refusal, assert_refused

REFUSED: list[Refusal] = [
    ({"steps": "many"}, "train.steps='many'", "must be an integer"),
    ({"optimizer": "adam"}, "train.optimizer='adam'", "did you mean adamw?"),
    ({"dtype": "bf16"}, "train.dtype='bf16'", "did you mean bfloat16?"),
    ({"device": "cdua"}, "train.device='cdua'", "did you mean cuda?"),
    ({"device": "gpu"}, "train.device='gpu'", "did you mean cuda?"),
    ({"device": "GPU"}, "train.device='GPU'", "did you mean cuda?"),
    ({"device": "cuda:x"}, "train.device='cuda:x'", "must be auto, cpu, cuda or cuda:N"),
    *[
        ({name: 0}, f"train.{name}=0", "must be at least 1")
        for name in ("steps", "batch_size", "seq_len", "log_every", "eval_tokens")
    ],
    *[
        ({name: -1}, f"train.{name}=-1", "must be at least 0")
        for name in (
            "micro_batch_size",
            "seed",
            "warmup_steps",
            "eval_every",
            "checkpoint_every",
            "keep_last",
            "keep_every",
            "max_skipped",
            "max_rollbacks",
        )
    ],
    *[
        ({name: -1}, f"train.{name}=-1.0", "must be at least 0")
        for name in ("weight_decay", "grad_clip")
    ],
    ({"seed": 2**63}, "train.seed=9223372036854775808", "must be below 2**63"),
    ({"lr": 0}, "train.lr=0.0", "must be above 0"),
    *[
        ({name: 1}, f"train.{name}=1.0", "must be from 0 to 0.99999")
        for name in ("beta1", "beta2")
    ],
    *[
        ({name: 1.5}, f"train.{name}=1.5", "must be from 0 to 1")
        for name in ("decay_fraction", "min_lr_fraction", "common_start")
    ],
    (
        {"batch_size": 12, "micro_batch_size": 5},
        "train.micro_batch_size=5",
        "must divide batch_size (12); one of 1, 2, 3, 4, 6, 12",
    ),
    *[
        ({"name": name}, f"train.name={name!r}", "must be 1 to 64 letters, digits")
        for name in ("../up", "a/b", "..", ".", "a b", "ä", "x" * 65, "a\n")
    ],
]


@pytest.mark.parametrize("refusal", REFUSED, ids=str)
def test_refused_in_one_line_that_names_setting_value_and_what_is_allowed(refusal):
    assert_refused(TrainConfig, refusal)


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:0", "cuda:12"])
def test_devices(device):
    assert TrainConfig(device=device).device == device


def test_the_largest_seed_is_that_of_64_bits():
    assert TrainConfig(seed=2**63 - 1).seed == 2**63 - 1


@pytest.mark.parametrize(("batch", "micro", "steps"), [(12, 0, 1), (12, 12, 1), (12, 3, 4)])
def test_gradient_accumulation(batch, micro, steps):
    assert TrainConfig(batch_size=batch, micro_batch_size=micro).accumulation_steps == steps
