"""Tests of which findings are reported, and in which order."""

from collections.abc import Iterator
from dataclasses import replace

import torch

from moebius.profile.case import Case
from moebius.profile.finding import Finding, changed
from moebius.profile.findings import findings
from moebius.profile.wording import describe
from tests.profile.made_up import PLAIN, findings_of, made_up, small_config, stepped, titles


def test_nothing_wrong(same):
    profile = made_up(small_config(*PLAIN))
    reported = findings_of(profile)
    assert not reported
    assert describe(profile, reported)[0].startswith("findings   nothing wrong; the step is bound")


def test_harm_comes_before_waste_and_waste_before_choices(same):
    config = small_config(*PLAIN, "--model.base_expansion=8", "--model.use_mtp=true")
    profile = made_up(config)
    steps = stepped(profile)
    steps.result.router_grad_norm_M = torch.tensor([1.0, 0.0])
    assert titles(findings(profile, steps)) == [
        "a router without a gradient",
        "an always-on base MLP",
        "multi-token prediction, a choice",
    ]


def test_the_flags_can_be_pasted(half):
    config = small_config(
        "--model.vocab_size=500", "--model.base_expansion=4", "--model.use_mtp=true"
    )
    profile = made_up(config)
    reported = findings_of(profile)
    text = describe(profile, reported)
    assert len(reported) >= 2
    for finding in reported:
        assert any(" ".join(finding.flags) in line for line in text)
        assert changed(config, finding) != config


def test_gains_that_drown_in_noise_are_not_told(same):
    profile = made_up(small_config(*PLAIN, "--model.base_expansion=1"))
    tiny_base = {
        piece: took * (1e-3 if piece.component == "base_mlp" else 1)
        for piece, took in profile.measured.pieces.items()
    }
    quiet = replace(profile, measured=replace(profile.measured, pieces=tiny_base))
    assert "an always-on base MLP" not in titles(findings_of(quiet))


def test_a_change_that_does_not_fit_the_configuration_is_not_proposed(monkeypatch):
    def two_changes(case: Case) -> Iterator[Finding]:
        yield case.finding("possible", "", "--model.num_layers=1")
        yield case.finding("impossible", "", "--model.num_heads=3", "--model.num_kv_heads=2")

    monkeypatch.setattr("moebius.profile.findings.RULES", (two_changes,))
    assert titles(findings_of(made_up(small_config()))) == ["possible"]
