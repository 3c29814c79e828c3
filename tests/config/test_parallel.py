"""Which values the settings of the hardware refuse."""

import pytest

from moebius.config import ParallelConfig
from tests.config.refusals import Refusal, assert_refused

REFUSED: list[Refusal] = [
    ({"expert_backend": "group"}, "parallel.expert_backend='group'", "did you mean grouped?"),
    ({"compile": True}, "parallel.compile=True", "one of auto, on, off; did you mean on?"),
    ({"loss_chunks": 0}, "parallel.loss_chunks=0", "must be at least 1"),
]


@pytest.mark.parametrize("refusal", REFUSED, ids=str)
def test_refused_in_one_line_that_names_setting_value_and_what_is_allowed(refusal):
    assert_refused(ParallelConfig, refusal)
