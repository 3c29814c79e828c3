"""Tests of the notes below the figures of an ablation."""

from dataclasses import replace

from moebius.ablate.notes import notes
from moebius.ablate.variants import Variant
from moebius.config import DataConfig
from tests.ablate.configurations import CONFIG, ablation, outcome

CURVE = ((2, 1.5), (8, 1.0))


def test_a_plain_comparison_needs_no_note():
    both = [outcome(name, turns=[1.0], curves=[CURVE]) for name in ("a", "b")]
    assert notes(ablation(*both)) == []


def test_what_happened_on_the_way_comes_first():
    first = outcome("a", router_type="sigmoid", base_expansion=1)
    lines = notes(ablation(first, notes=["one after the other"]))
    assert lines[0] == "one after the other"
    assert lines[1].startswith("all experts of a sigmoid router count as active")


def test_a_schedule_that_has_not_warmed_up():
    short = outcome("a", turns=[1.0], curves=[((1, 1.5), (2, 1.4))])
    (note,) = notes(ablation(short))
    assert note.endswith("train.warmup_steps is 2, of 2 steps")


def test_schedules_that_end_at_different_times():
    fast, slow = (
        outcome(name, turns=[seconds], curves=[CURVE])
        for name, seconds in (("f", 1.0), ("s", 2.0))
    )
    (note,) = notes(ablation(fast, slow))
    assert note.startswith("at equal time the slower variants")
    (note,) = notes(ablation(fast, slow, learn_seconds=8.0))
    assert "at equal tokens the faster ones" in note


def test_another_text_and_alarms_that_would_act():
    rule = replace(CONFIG.observe.cv, action="raise_aux")
    acting = replace(CONFIG, observe=replace(CONFIG.observe, cv=rule))
    first = outcome(turns=[1.0], curves=[CURVE], variant=Variant("first", (), acting))
    text = replace(CONFIG, data=DataConfig(source="other.txt"))
    other = outcome(turns=[1.0], curves=[CURVE], variant=Variant("other", (), text))
    lines = notes(ablation(first, other))
    assert lines[0].endswith("than the first variant: `other`")
    assert lines[1] == "alarms take no action here: cv"
