"""Tests of `moebius plan`."""

import json

import pytest

from tests.cli.command_line import refused


@pytest.mark.parametrize("gpu", ["h100", "H100", "H200", "RTX 4090", "rtx-4090", "L40s"])
def test_the_name_of_a_gpu_in_any_letter_case(gpu, moebius):
    result = moebius("plan", "tiny", "--gpu", gpu, "--json")
    assert result.code == 0
    assert json.loads(result.out)["device"]["name"] == gpu.lower().replace(" ", "-")


@pytest.mark.parametrize("name", ["NVIDIA H100 80GB HBM3", "NVIDIA GeForce RTX 4090"])
def test_the_name_that_the_driver_says(name, moebius):
    result = moebius("plan", "tiny", "--gpu", name, "--json")
    assert result.code == 0
    assert json.loads(result.out)["device"]["name"] in ("h100", "rtx-4090")


def test_a_plan_is_shown_as_text_or_as_json(moebius):
    layers = ("--model.num_layers", "12")
    result = moebius("plan", "standard", "--gpus", "8", "--gpu", "h200", *layers)
    assert result.code == 0 and "8 x h200" in result.out
    result = moebius("plan", "--json")
    assert result.code == 0 and json.loads(result.out)["best"]["step_seconds"] > 0


def test_options_that_make_no_sense(moebius):
    refused(moebius("plan", "--gpu", "H10"), 2, "--gpu H10", "did you mean h100?")
    refused(moebius("plan", "--gpus", "0", "--gpu", "h100"), 2, "--gpus 0")
    refused(moebius("plan", "--imbalance", "nan", "--gpu", "h100"), 2, "--imbalance nan")
