"""The sinks that a configuration asks for."""

from pathlib import Path
from typing import Any

import pytest

from moebius.config import ObserveConfig
from moebius.errors import ConfigError
from moebius.observe import registry
from moebius.observe.apart import Apart
from moebius.observe.expert_counts import ExpertCounts
from moebius.observe.json_lines import EVENTS, METRICS, JsonLines
from moebius.observe.registry import check_sinks, sinks_for
from moebius.observe.sink import Sinks
from moebius.observe.tensorboard import FOLDER
from moebius.parallel.process import Process
from tests.observe.made_up import metrics_of


@pytest.mark.parametrize(
    ("tensorboard", "wandb", "apart"),
    [
        (True, "off", ["TensorBoard"]),
        (False, "off", []),
        (True, "offline", ["TensorBoard", "Weights & Biases"]),
        (False, "online", ["Weights & Biases"]),
    ],
)
def test_a_configuration_chooses_the_sinks(tensorboard: bool, wandb: Any, apart: list[str]):
    chosen = sinks_for(ObserveConfig(tensorboard=tensorboard, wandb=wandb), Process())
    assert [type(sink) for sink in chosen[:2]] == [JsonLines, ExpertCounts]
    assert [sink.name for sink in chosen[2:] if isinstance(sink, Apart)] == apart


@pytest.mark.parametrize("tensorboard", [True, False])
def test_the_sinks_write_their_files(tensorboard: bool, tmp_path: Path):
    chosen = sinks_for(ObserveConfig(tensorboard=tensorboard), Process())
    with Sinks(chosen, tmp_path, 0) as sinks:
        sinks.write(metrics_of(step=1))
    files = {METRICS, EVENTS} | ({FOLDER} if tensorboard else set())
    assert {path.name for path in tmp_path.iterdir()} == files


def test_a_library_that_is_missing_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr(registry, "find_spec", lambda name: None)
    check_sinks(ObserveConfig())
    with pytest.raises(ConfigError, match=r"observe\.wandb='online': .*moebius\[wandb\]"):
        check_sinks(ObserveConfig(wandb="online"))


def test_a_process_that_does_not_write_has_no_sinks():
    assert sinks_for(ObserveConfig(), Process(rank=3, world_size=4)) == []
