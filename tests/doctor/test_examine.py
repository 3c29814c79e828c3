"""Tests of the whole report of `moebius doctor`."""

import json
import re

import pytest
import torch

TRIALS = [
    "loop experts, float32",
    "grouped experts, float32",
    "float8 experts, float32",
    "sdpa attention, float32",
    "training",
    "resume, bit by bit",
    "a flipped bit is noticed",
    "order of the data",
]


def row(name: str, out: str) -> str:
    """Return the first row of that name."""
    match = re.search(rf"^{name} +(.*)$", out, re.MULTILINE)
    assert match, out
    return match[1]


def test_a_sound_machine(doctor, tmp_path):
    result = doctor()
    assert result.code == 0 and not result.err
    assert list(result.outcomes) == TRIALS and set(result.outcomes.values()) == {"ok"}
    assert result.out.splitlines()[-1].startswith("all is well: 8 of 8 checks passed")
    assert row("torch", result.out).startswith(f"{torch.__version__}, ")
    assert re.search(r"^attention +flex, unavailable: .* needs a GPU", result.out, re.MULTILINE)
    ceilings = "100 GFLOP/s of float32 products, 10 GB/s of copies"
    assert row("ceilings", result.out) == ceilings
    assert row("compile", result.out).startswith("off (--parallel.compile auto); ")
    assert not list(tmp_path.glob("moebius*"))


@pytest.mark.gpu
def test_a_sound_gpu(doctor):
    result = doctor("--train.device", "cuda")
    assert result.code == 0, result
    assert set(result.outcomes.values()) == {"ok"}
    assert "flex attention, bfloat16" in result.outcomes


@pytest.mark.usefixtures("without_a_run")
def test_json(doctor):
    result = doctor("--json")
    values = json.loads(result.out)
    assert result.code == 0
    assert values["machine"]["torch"] == torch.__version__
    assert values["ceilings"] == {"flops": 1e11, "bytes": 1e10}
    assert [check["passed"] for check in values["checks"]] == [True] * 4
    states = {(offer["kind"], offer["name"]): offer["state"] for offer in values["backends"]}
    assert states["experts", "loop"] == "used"
    assert values["verdict"].startswith("all is well")


@pytest.mark.usefixtures("without_a_run")
def test_the_configured_choices_are_what_is_examined(doctor):
    result = doctor(
        "--parallel.expert_backend=grouped", "--train.dtype=bfloat16", "--model.activation=relu2"
    )
    assert re.search(r"^experts +grouped, used: asked for$", result.out, re.MULTILINE)
    assert "grouped experts, bfloat16" in result.outcomes
    assert "output and 4 gradients" in result.out
    assert re.search(r"^watch out +most CPUs emulate bfloat16", result.out, re.MULTILINE)


def test_it_takes_no_preset(doctor):
    result = doctor("tiny")
    assert result.code == 2 and "'tiny'" in result.err
