"""A checkpoint's state.json is an object, and of the step in its folder's name."""

import json
from pathlib import Path
from typing import Any

import pytest

from moebius.errors import CheckpointError
from moebius.train.checkpoint_state import parsed_state


def parsed(folder: str, state: Any) -> dict[str, Any]:
    return parsed_state(Path(folder), bytearray(json.dumps(state).encode()))


@pytest.mark.parametrize("folder", ["step-00000002", "step-2", ".step-00000007.partial", "kept"])
def test_the_state_of_the_step_in_the_name_is_returned(folder):
    assert parsed(folder, {"step": 2, "tokens": 5}) == {"step": 2, "tokens": 5}


@pytest.mark.parametrize("step", [7, -2, 2.5, "2", [2]])
def test_the_checkpoint_of_one_step_under_the_name_of_another_is_refused(step):
    """A run that resumed it would save older steps, and resume the same one again."""
    with pytest.raises(
        CheckpointError, match=r"this is the checkpoint of step .*, under that name"
    ):
        parsed("step-00000002", {"step": step})


@pytest.mark.parametrize("state", [[], 7, "step", None])
def test_what_is_no_object_is_refused(state):
    with pytest.raises(CheckpointError, match=r"state\.json: not a JSON object"):
        parsed("step-00000002", state)
