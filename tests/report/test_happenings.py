"""Tests of what events.jsonl says."""

from typing import Any

import pytest

from moebius.report.happenings import MOST_LATEST, MOST_SHOWN, read_happenings
from tests.report.made_up_run import alarm


def texts(events: list[Any]) -> list[str]:
    """Return the texts of all that happened."""
    return [happening.text for happening in read_happenings(events).latest]


def test_layers_of_one_rule_and_step_are_one_happening():
    happenings = read_happenings(
        [alarm(5, "cv", 0), alarm(5, "cv", 2, value=0.7), alarm(6, "cv", 1)]
    )
    assert [each.step for each in happenings.latest] == [5, 6]
    assert happenings.latest[0].text == (
        "layers 0, 2: CV of the load as high as 0.70, above 0.30 since step 0"
    )
    assert happenings.series["alarm", "cv"].number == 2
    assert set(happenings.open) == {("cv", 0), ("cv", 1), ("cv", 2)}


def test_an_alarm_that_is_over_is_not_open():
    happenings = read_happenings([alarm(5, "cv"), alarm(9, "cv", over=True)])
    assert not happenings.open
    assert [each.kind for each in happenings.latest] == ["alarm", "over"]


def test_an_alarm_about_experts_is_over_with_the_last_of_them():
    fires = alarm(5, "dead_expert", experts=[1, 2], expert=1)
    one = alarm(8, "dead_expert", experts=[2], expert=2, over=True)
    other = alarm(9, "dead_expert", experts=[1], expert=1, over=True)
    assert read_happenings([fires, one]).open
    assert not read_happenings([fires, one, other]).open


def test_what_was_done_is_said():
    event = alarm(5, "cv", action="raise_aux", done="balance loss 0.1 -> 0.2")
    happenings = read_happenings([event])
    assert happenings.latest[0].kind == "action"
    assert happenings.latest[0].text.endswith("; balance loss 0.1 -> 0.2")


def test_a_rollback_forgets_later_alarms():
    spike = alarm(30, "loss_spike", -1, done="rolled back", rewound_to=10)
    happenings = read_happenings([alarm(5, "cv"), alarm(20, "cv", 2), spike])
    assert set(happenings.open) == {("cv", 0)}


def test_an_alarm_stops_a_run_until_it_is_resumed():
    stop = alarm(5, "router_logits", action="stop", done="state saved")
    resumed = {"event": "resumed", "step": 5, "changed": {"train.lr": [0.1, 0.01]}}
    assert read_happenings([stop]).stopped
    happenings = read_happenings([stop, resumed])
    assert not happenings.stopped
    assert happenings.latest[-1].text == "resumed with train.lr 0.1 -> 0.01"


def test_skipped_updates():
    events = [{"event": "skipped", "step": n, "in_a_row": n - 4} for n in (5, 6, 7)]
    happenings = read_happenings(events)
    assert (happenings.num_skipped_at_end, happenings.last_skipped) == (3, 7)


@pytest.mark.parametrize(
    "event",
    [
        None,
        {"step": 3},
        {"step": 3, "event": 5},
        {"step": 3, "event": ["a"]},
    ],
)
def test_damaged_events_are_counted(event):
    happenings = read_happenings([event, alarm(5, "cv")])
    assert happenings.num_damaged == 1 and len(happenings.latest) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"rule": "unknown"},
        {"rule": ["cv"]},
        {"layer": "0"},
        {"layer": None},
        {"layer": -7},
        {"layer": 10**400},
        {"experts": [10**400]},
        {"experts": [None]},
        {"experts": 3},
        {"since": None},
    ],
)
def test_an_alarm_that_is_not_understood_is_shown_as_it_is(changes):
    happenings = read_happenings([alarm(5, "cv") | changes])
    assert [each.kind for each in happenings.latest] == ["other"]
    assert happenings.latest[0].text.startswith("rule ")


@pytest.mark.parametrize(
    "changes",
    [
        {"value": None},
        {"value": "high"},
        {"threshold": 10**400},
        {"figures": None},
        {"experts": [0, 1, 2, 3, 9], "figures": {}},
    ],
)
def test_an_alarm_without_some_figures_still_has_words(changes):
    assert texts([alarm(5, "dead_expert") | changes])[0].startswith("layer 0")


def test_an_alarm_of_an_earlier_version_names_one_expert():
    event = alarm(5, "dead_expert", expert=3)
    del event["experts"]
    assert texts([event])[0].startswith("layer 0, expert 3:")


def test_a_long_run_is_thinned_out():
    happenings = read_happenings([alarm(step, "cv") for step in range(1, 5_001)])
    series = happenings.series["alarm", "cv"]
    assert len(happenings.latest) == MOST_LATEST
    assert (series.number, series.first, series.last) == (5_000, 1, 5_000)
    assert MOST_SHOWN <= len(series.shown) < 2 * MOST_SHOWN
    assert series.shown[0].step == 1 and series.shown[-1].step > 4_900


def test_a_branch_says_where_it_comes_from():
    origin = {"path": "/runs/trial", "step": 5, "sha256": "ab"}
    event = {"event": "branched", "step": 5, "origin": origin, "changed": {"train.lr": [1, 2]}}
    assert texts([event]) == ["branched from /runs/trial, step 5 with train.lr 1 -> 2"]


def test_an_imported_model_says_where_it_comes_from():
    origin = {"path": "/models/stock", "step": 0}
    event = {"event": "imported", "step": 0, "origin": origin, "changed": {}}
    assert texts([event]) == ["imported from /models/stock"]


def test_a_sink_that_failed_is_named():
    event = {"event": "sink", "step": 5, "sink": "TensorBoard", "text": "the disk is full"}
    assert texts([event]) == ["TensorBoard: the disk is full"]
