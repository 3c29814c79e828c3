"""Which values the settings of the hardware refuse."""

from typing import get_args

import pytest

from moebius.config import ParallelConfig, TrainConfig
from moebius.config.attention import ATTENTION
from moebius.config.expert_backends import EXPERT_BACKENDS
from moebius.config.fields import annotations
from tests.config.refusals import Refusal, assert_refused

REFUSED: list[Refusal] = [
    ({"expert_backend": "group"}, "parallel.expert_backend='group'", "did you mean grouped?"),
    ({"compile": True}, "parallel.compile=True", "one of auto, on, off; did you mean on?"),
    ({"loss_chunks": 0}, "parallel.loss_chunks=0", "must be at least 1"),
]


@pytest.mark.parametrize("refusal", REFUSED, ids=str)
def test_refused_in_one_line_that_names_setting_value_and_what_is_allowed(refusal):
    assert_refused(ParallelConfig, refusal)


def test_every_expert_backend_can_be_chosen():
    # float8 is a separate backend, but train.expert_dtype chooses it.
    choices = get_args(annotations(ParallelConfig)["expert_backend"])
    arithmetics = get_args(annotations(TrainConfig)["expert_dtype"])
    assert {*choices, *arithmetics} - {"auto"} == set(EXPERT_BACKENDS)


def test_every_attention_backend_can_be_chosen():
    # The device decides which of torch's sdpa paths runs.
    choices = get_args(annotations(ParallelConfig)["attention_backend"])
    assert {*choices} - {"auto"} == {name.partition("_")[0] for name in ATTENTION}
