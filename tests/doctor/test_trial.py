"""Tests of what is reported about a trial."""

import pytest

from moebius.doctor.trial import Check, Trial, TrialFailed, carried_out
from moebius.errors import ConfigError, Interrupted


def raising(error: Exception) -> Trial:
    """Return a trial that raises an error."""

    def run() -> str:
        raise error

    return Trial("a trial", run, "do something")


def test_a_trial_that_passes():
    check = carried_out(Trial("a trial", lambda: "7 of 7", "do something"))
    assert check.passed and check.figures == "7 of 7" and check.remedy == ""
    line = str(Check("a trial", True, "7 of 7", 1.25, ""))
    assert line == f"ok      {'a trial':<26}7 of 7  (1.2 s)"


@pytest.mark.parametrize(
    ("error", "figures"),
    [
        (TrialFailed("3 of 7"), "3 of 7"),
        (ConfigError("model.dim=3: odd"), "model.dim=3: odd"),
        (RuntimeError("no\n kernel"), "RuntimeError: no kernel"),
    ],
)
def test_a_trial_that_fails(error, figures):
    check = carried_out(raising(error))
    assert not check.passed and check.figures == figures and check.remedy == "do something"
    assert str(check).startswith("FAILED  a trial ")


def test_an_interruption_is_not_a_failure():
    with pytest.raises(Interrupted):
        carried_out(raising(Interrupted("stopped", 2)))
