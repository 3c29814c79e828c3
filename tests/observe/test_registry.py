"""The sinks that a configuration asks for."""

from pathlib import Path

import pytest

from moebius.config import ObserveConfig
from moebius.observe.expert_counts import ExpertCounts
from moebius.observe.json_lines import EVENTS, METRICS, JsonLines
from moebius.observe.registry import sinks_for
from moebius.observe.sink import Sinks
from moebius.observe.tensorboard import FOLDER, TensorBoard
from moebius.parallel.process import Process
from tests.observe.made_up import metrics_of


@pytest.mark.parametrize(
    ("tensorboard", "kinds"),
    [(True, [JsonLines, ExpertCounts, TensorBoard]), (False, [JsonLines, ExpertCounts])],
)
def test_a_configuration_chooses_the_sinks(tensorboard: bool, kinds: list[type], tmp_path: Path):
    chosen = sinks_for(ObserveConfig(tensorboard=tensorboard), Process())
    assert [type(sink) for sink in chosen] == kinds
    with Sinks(chosen, tmp_path, 0) as sinks:
        sinks.write(metrics_of(step=1))
    files = {METRICS, EVENTS} | ({FOLDER} if tensorboard else set())
    assert {path.name for path in tmp_path.iterdir()} == files


def test_a_process_that_does_not_write_has_no_sinks():
    assert sinks_for(ObserveConfig(), Process(rank=3, world_size=4)) == []
