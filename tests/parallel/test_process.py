"""Which process this is, as the environment of a launcher describes it."""

import os
import subprocess
import sys
import time

import pytest

from moebius.errors import ConfigError
from moebius.parallel.process import SPEAKING_SECONDS, Process


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Process()),
        ({"WORLD_SIZE": "8"}, Process()),  # other tools use this name, too
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, Process(0, 1, 0)),
        ({"RANK": "0"}, Process(0, 1, 0)),
        ({"RANK": "", "WORLD_SIZE": ""}, Process(0, 1, 0)),
    ],
)
def test_one_process_is_one_however_it_was_started(environment, expected):
    assert Process.from_environment(environment) == expected
    assert expected.writes


@pytest.mark.parametrize("world_size", [2, 3, 64])
def test_a_command_for_one_process_refuses_several_in_one_line(world_size):
    environment = {"RANK": "0", "WORLD_SIZE": str(world_size), "LOCAL_RANK": "0"}
    assert Process.from_environment(environment) == Process(0, world_size)
    with pytest.raises(
        ConfigError, match=rf"^{world_size} processes were .*moebius profile"
    ) as no:
        Process.single("`moebius profile`", environment)
    assert no.value.exit_code == 2 and "\n" not in str(no.value)


def test_the_other_processes_let_the_first_say_what_is_wrong(monkeypatch):
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    with pytest.raises(ConfigError, match=r"^rank 1: lr") as error, Process(1, 2).first_speaks():
        raise ConfigError("lr")
    assert error.value.exit_code == 2 and pauses == [SPEAKING_SECONDS]
    with pytest.raises(ConfigError, match=r"^lr"), Process(0, 2).first_speaks():
        raise ConfigError("lr")
    assert pauses == [SPEAKING_SECONDS]


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "LOCAL_RANK"])
def test_a_variable_that_is_no_number_is_named(name):
    environment = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"} | {name: "zero"}
    with pytest.raises(ConfigError, match=f"{name}=zero.*whole numbers"):
        Process.from_environment(environment)


@pytest.mark.parametrize(
    "variables",
    [
        {"RANK": "1", "WORLD_SIZE": "1"},
        {"RANK": "3"},
        {"RANK": "-1", "WORLD_SIZE": "1"},
        {"RANK": "-1", "WORLD_SIZE": "4"},
        {"RANK": "0", "WORLD_SIZE": "0"},
        {"RANK": "0", "WORLD_SIZE": "-2"},
        {"RANK": "4", "WORLD_SIZE": "4"},
        {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "-1"},
        {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "1"},
    ],
)
def test_a_process_that_cannot_exist_is_refused(variables):
    with pytest.raises(ConfigError, match=f"RANK={variables['RANK']}.* must be from") as refusal:
        Process.from_environment(variables)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("command", ["branch", "profile", "ablate", "doctor"])
def test_a_command_for_one_process_asks_which_process_it_is(command):
    """Two profiles on one GPU would spoil each other's figures, as two runs would."""
    done = subprocess.run(
        [sys.executable, "-m", "moebius", command, *["nosuch"] * (command == "branch")],
        env=os.environ | {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("moebius: 2 processes were started")
    assert done.stderr.count("\n") == 1


def test_only_the_first_process_writes():
    assert [Process(rank, 4).writes for rank in range(4)] == [True, False, False, False]
