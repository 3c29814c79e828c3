"""Tests of an ablation as JSON."""

import json

from moebius.ablate.comparison import Outcome
from moebius.ablate.json_text import as_json
from moebius.ablate.variants import Variant
from tests.ablate.configurations import TWIN, ablation, outcome

CURVE, LOWER = ((2, 1.5), (8, 1.0)), ((2, 1.75), (8, 0.75))


def test_everything_that_was_measured_is_there():
    values = json.loads(
        as_json(
            ablation(
                outcome("mixture", [0.5], turns=[1.0], curves=[LOWER]),
                outcome(rounds=[0.25], turns=[1.0], curves=[CURVE], variant=TWIN),
            )
        )
    )
    mixture, dense = values["variants"]
    assert dense["ratio"]["middle"] == 2.0 and dense["is_twin"]
    assert mixture["tokens_per_step"] == 200 and mixture["tokens_per_second"] == 400
    assert mixture["equal_tokens"] == {
        "tokens": 1600,
        "loss": [1.5],
        "bits_per_byte": [0.75],
        "against_the_first": {"middle": 0.0, "lowest": 0.0, "highest": 0.0},
    }
    assert mixture["break_even"] == {"tokens": 1000.0, "seconds": 5.0}
    assert "break_even" not in dense
    assert mixture["curves"] == [
        [
            {"step": 2, "loss": 3.5, "bits_per_byte": 1.75},
            {"step": 8, "loss": 1.5, "bits_per_byte": 0.75},
        ]
    ]
    assert [sentence["title"] for sentence in values["verdict"]][:3] == [
        *("fastest", "equal tokens", "equal time")
    ]


def test_what_was_not_measured_is_left_out():
    broken = Outcome(Variant("broken", ("--model.dim=3",), None), problem="odd")
    (values,) = json.loads(as_json(ablation(broken)))["variants"]
    assert values == {
        "name": "broken",
        "flags": ["--model.dim=3"],
        "problem": "odd",
        "is_twin": False,
        "is_resized": False,
    }
