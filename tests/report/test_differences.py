"""Tests of the settings in which runs differ."""

from moebius.report.differences import differences
from tests.report.made_up_run import config_of


def test_only_what_differs_is_listed():
    configs = [config_of(), config_of("--train.lr=0.5", "--train.name=other"), None]
    rows = dict(differences(configs))
    assert list(rows) == ["train.lr"]
    assert rows["train.lr"][1:] == ["0.5", "?"]


def test_alarms_are_settings_too():
    rows = dict(differences([config_of(), config_of("--observe.cv.patience=7")]))
    assert rows == {"observe.cv.patience": ["10", "7"]}


def test_equal_or_unknown_runs_do_not_differ():
    assert differences([config_of(), config_of()]) == []
    assert differences([None, None]) == []
