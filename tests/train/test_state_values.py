"""Values that are missing or of another type are refused by name before any is used."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from moebius.errors import CheckpointError
from moebius.train.state_values import check_values

OWN: dict[str, Any] = {
    "step": 3,
    "tokens": 96,
    "aux_levels": [0, 2],
    "corpus": "a text",
    "alarms": {
        "seen": [["cv", 0, -1, [[1, 0.5], [2, 1]]]],
        "fine_at": [["dead_expert", 1, 2, 3]],
        "beyond_at": [],
    },
}
FOLDER = Path("checkpoints/step-00000003")


def test_the_runs_own_values_are_accepted_with_others_beside_them():
    check_values(FOLDER, deepcopy(OWN) | {"of a later version": [1]}, OWN)
    check_values(Path("elsewhere"), deepcopy(OWN) | {"step": 7}, OWN)
    check_values(Path("checkpoints/step-3"), deepcopy(OWN), OWN)


@pytest.mark.parametrize("name", OWN)
def test_a_missing_value_is_named(name):
    values = {key: value for key, value in OWN.items() if key != name}
    with pytest.raises(CheckpointError, match=rf"step-00000003/state\.json: {name} is missing"):
        check_values(FOLDER, values, OWN)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("step", None),
        ("step", "3"),
        ("step", 3.0),
        ("step", True),
        ("step", -1),
        ("step", 10**30),
        ("tokens", 2**63),
        ("aux_levels", [0, 2**64]),
        ("tokens", []),
        ("tokens", float("nan")),
        ("corpus", 3),
        ("corpus", None),
        ("aux_levels", 0),
        ("aux_levels", [0]),
        ("aux_levels", [0, 1, 2]),
        ("aux_levels", [0, "1"]),
        ("aux_levels", [0, -1]),
        ("aux_levels", {"0": 0, "1": 1}),
    ],
)
def test_a_value_of_another_type_is_named(name, value):
    with pytest.raises(CheckpointError, match=rf"state\.json: {name} cannot be "):
        check_values(FOLDER, OWN | {name: value}, OWN)


@pytest.mark.parametrize(
    "changes",
    [
        {"seen": None},
        {"fine_at": {}},
        {"seen": [["cv", 0, -1]]},
        {"seen": [["cv", 0, -1, 5]]},
        {"seen": [["cv", 0, -1, [[1, "0.5"]]]]},
        {"seen": [["cv", 0, -1, [[1]]]]},
        {"seen": ["cv"]},
        {"seen": [["cv", 0, [[1, 0.5]]]]},
        {"seen": [["cv", 0, [[1, ["0.5"]]]]]},
        {"fine_at": [["cv", 0, [3, "4"]]]},
        {"fine_at": [["cv", 0, []]]},
        {"beyond_at": [["cv", 0, 3]]},
        {"fine_at": [["cv", 0, -1, "3"]]},
        {"fine_at": [["cv", "0", -1, 3]]},
        {"beyond_at": [[1, 0, -1, 3]]},
        {"beyond_at": [["cv", 0, 3]]},
        {"fine_at": [["cv", 0, [3, 2**63]]]},
        {"beyond_at": [["cv", 0, [-(10**30)]]]},
        {"seen": [["cv", 0, [[10**30, [0.5]]]]]},
        {"counted": [[0, [1, 10**30]]]},
        {"counted": 5},
        {"counted": None},
        {"counted": [[0, 5]]},
        {"counted": [[0, [1, "2"]]]},
    ],
)
def test_alarms_of_another_form_are_refused(changes):
    with pytest.raises(CheckpointError, match="alarms cannot be "):
        check_values(FOLDER, OWN | {"alarms": OWN["alarms"] | changes}, OWN)


@pytest.mark.parametrize("alarms", [None, [], {}, "seen", {"seen": [], "fine_at": []}])
def test_what_is_no_state_of_alarms_is_refused(alarms):
    with pytest.raises(CheckpointError, match="alarms cannot be "):
        check_values(FOLDER, OWN | {"alarms": alarms}, OWN)


def test_a_refusal_is_short_and_of_one_line():
    with pytest.raises(CheckpointError) as refusal:
        check_values(FOLDER, OWN | {"corpus": ["a\n" * 100]}, OWN)
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 250
