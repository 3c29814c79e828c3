"""The comparison of recipes: the queue, and the cells of the table."""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import pytest

from moebius.config.files import read_config

OWN = {"1000": 2.0, "2000": 1.5, "4000": 1.25}


def line(name: str = "mixture", bits: dict[str, float] = OWN, speed: float = 500.0) -> Any:
    return {
        "name": name,
        "seed": 0,
        "bits_per_byte": bits,
        "tokens_per_second": speed,
        "worst_cv": 0.125,
        "dead_experts": 3,
        "gpu": "a GPU",
    }


def test_bits_are_straight_over_the_logarithm_of_the_tokens(script):
    interpolated = script("recipes").interpolated
    bits = {"4000": 1.25, "1000": 2.0, "2000": 1.5}
    assert [interpolated(bits, tokens) for tokens in (1000, 2000, 4000)] == [2.0, 1.5, 1.25]
    assert interpolated(bits, math.sqrt(1000 * 2000)) == pytest.approx(1.75)
    assert interpolated(bits, math.sqrt(2000 * 4000)) == pytest.approx(1.375)
    assert interpolated(bits, 8000) == pytest.approx(1.0)  # beyond, as between the last two
    assert interpolated(bits, 500) == pytest.approx(2.5)


def test_a_row_compares_at_equal_tokens_and_by_the_clock(script):
    twin = line("dense twin", {"1000": 2.5, "2000": 2.0, "4000": 1.75}, 1000.0)
    row = script("recipes").cells(line(), twin)
    assert row[:2] == ["mixture", "0"]
    assert row[2:5] == ["2.0000 (-0.5000)", "1.5000 (-0.5000)", "1.2500 (-0.5000)"]
    # When the twin has had 4,000 tokens, a mixture of half its speed has had 2,000.
    assert row[5:] == ["0.50", "-0.2500", "0.12", "3"]
    assert script("recipes").cells(twin, twin)[5:7] == ["1.00", "+0.0000"]


def test_speeds_of_other_gpus_are_not_compared(script):
    cells = script("recipes").cells
    row = cells(line(), line("dense twin") | {"gpu": "another"})
    assert row[2] == "2.0000 (+0.0000)" and row[5:7] == ["", ""]
    assert cells(line(), None)[2:7] == ["2.0000", "1.5000", "1.2500", "", ""]


def test_the_best_twin_of_the_same_seed_is_compared_with(script, capsys):
    worse = line("dense twin, rate 1", {"1000": 1.0, "2000": 3.0})
    better = line("dense twin, rate 2", {"1000": 2.0, "2000": 2.0})
    other_seed = line("dense twin, rate 1", {"1000": 1.0, "2000": 1.0}) | {"seed": 1}
    own = line(bits={"1000": 1.5, "2000": 1.75})
    script("recipes").print_table([worse, own, better, other_seed])
    rows = [row.split(" | ") for row in capsys.readouterr().out.splitlines()[3:]]
    (mixture,) = (row for row in rows if "mixture" in row[0])
    assert mixture[3] == "1.7500 (-0.2500)"
    script("recipes").print_table([own])
    assert capsys.readouterr().out == "no result of the dense twin yet\n"


def test_every_recipe_is_a_configuration(script):
    recipes = script("recipes")
    for settings in recipes.QUEUE.values():
        config = read_config("tiny", recipes.words({**recipes.COMMON, **settings}))
        for steps in (*recipes.STEPS.values(), recipes.LAST_DECAY):
            assert steps % config.train.checkpoint_every == 0  # a branch begins at a checkpoint
        assert (config.model.num_experts == 0) == (settings["model.num_experts"] == 0)


@pytest.mark.parametrize("num_gpus", [1, 3])
def test_the_queue_goes_on_where_its_results_end(script, num_gpus, tmp_path: Path, monkeypatch):
    """Threads that find the queue empty end, also if there are more of them than recipes."""
    recipes = script("recipes")
    trained: list[list[str]] = []
    results = tmp_path / "new" / "results.jsonl"

    def train_recipe(flags: list[str], held_out: Path, gpu: int) -> dict[str, Any]:
        assert held_out == tmp_path / "held_out" and 0 <= gpu < num_gpus
        trained.append(flags)
        return {"bits_per_byte": {"1": 1.0}}

    monkeypatch.setattr(recipes, "train_recipe", train_recipe)
    monkeypatch.setattr(recipes, "run_moebius", lambda arguments, gpu: "")
    options = argparse.Namespace(
        results=results, only="dense twin", seed=5, minutes=1.0, gpus=num_gpus, field=tmp_path
    )
    recipes.train_queue(options, ["--train.lr=1"])
    lines = [json.loads(text) for text in results.read_text().splitlines()]
    twins = [name for name in recipes.QUEUE if name.startswith("dense twin")]
    assert sorted(found["name"] for found in lines) == sorted(twins)
    assert all("--train.lr=1" in flags and "--train.seed=5" in flags for flags in trained)
    recipes.train_queue(options, [])
    assert len(trained) == len(twins)
