"""Tests of the dense twin's curve."""

import json

import pytest

from moebius.cost.counts import training_flops_per_token
from moebius.observe.charts import Charts
from moebius.report.run import read_run
from moebius.report.twin import twin_lines
from tests.report.made_up_run import config_of, write_run


def variant(name, is_twin, losses, flags=()):
    """Return a variant as the JSON of an ablation has it, with a curve for each seed."""
    curves = [
        [{"step": 10 * (at + 1), "loss": loss, "bits_per_byte": 1.0} for at, loss in enumerate(of)]
        for of in losses
    ]
    return {
        "name": name,
        "flags": list(flags),
        "is_twin": is_twin,
        "tokens_per_step": 100,
        "learning_seconds_per_step": 0.5,
        "curves": curves,
    }


def lines_of(tmp_path, ablation):
    """Return the lines of a run with an ablation, and the places of each."""
    folder = write_run(tmp_path / "run")
    (folder / "ablate.json").write_text(json.dumps(ablation))
    charts = Charts()
    lines = twin_lines(read_run(folder), charts, 0, False)
    return lines, [charts.to_json()["axes"][line.axes] for line in lines]


def test_the_twin_and_the_mixture_of_the_ablation(tmp_path):
    dense = ("--model.num_experts=0", "--model.base_expansion=2")
    mixture = variant("as given", False, [[3.0, 2.0], [3.0, 1.0]])
    twin = variant("dense twin", True, [[4.0, 3.0]], dense)
    lines, places = lines_of(tmp_path, {"variants": [mixture, twin]})
    assert [line.name for line in lines] == [
        "dense twin, in the ablation",
        "the same mixture, in the ablation",
    ]
    assert [list(line.y) for line in lines] == [[4.0, 3.0], [3.0, 1.5]]
    assert places[0]["tokens"] == [1000, 2000] and places[0]["seconds"] == [5, 10]
    config = config_of(*dense)
    flops = training_flops_per_token(config.model, config.train.seq_len)
    assert places[0]["flops"] == pytest.approx([1000 * flops, 2000 * flops], rel=1e-5)


@pytest.mark.parametrize(
    "ablation",
    [
        {},
        {"variants": 3},
        {"variants": [3, None]},
        {"variants": [variant("as given", False, [[3.0]])]},
        {"variants": [variant("twin", True, []) | {"curves": "none"}]},
        {"variants": [variant("twin", True, [[1.0]]) | {"tokens_per_step": None}]},
        {"variants": [{"is_twin": True}]},
        {"variants": [variant("twin", True, []) | {"curves": [[3], 5, [{"step": "a"}]]}]},
    ],
)
def test_an_ablation_without_a_twin_or_damaged_adds_nothing(tmp_path, ablation):
    assert lines_of(tmp_path, ablation) == ([], [])


def test_unknown_flags_only_cost_the_axis_of_flops(tmp_path):
    twin = variant("twin", True, [[4.0]], ("--model.unknown=1",))
    lines, places = lines_of(tmp_path, {"variants": [twin]})
    assert lines and "flops" not in places[0]
