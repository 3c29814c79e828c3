"""Tests that a finding's change is applied and measured."""

from dataclasses import replace

import pytest
import torch

from moebius.profile.finding import Finding
from moebius.profile.findings import findings
from moebius.profile.profile import profile
from moebius.profile.steps import Steps
from moebius.profile.verify import Verified, verify
from moebius.profile.wording import prediction
from tests.profile.made_up import made_up, small_config, titled

CPU = torch.device("cpu")


@pytest.mark.heavy
def test_a_change_is_made_and_measured(small):
    config = replace(small, model=replace(small.model, base_expansion=16.0))
    profiled, steps = profile(config, CPU, seconds=1.0)
    finding = titled(findings(profiled, steps), "an always-on base MLP")
    verified = verify(profiled, steps, finding, rounds=3)
    said_before = f"predicted {verified.predicted:.2f}x"
    assert said_before in prediction(profiled, finding) and said_before in str(verified)
    assert len(verified.before) == len(verified.after) == 3
    assert sum(verified.after) < sum(verified.before)


@pytest.mark.heavy
def test_a_larger_batch_is_compared_at_equal_tokens(small):
    finding = Finding("", "", ("--train.batch_size=16",), 1.0)
    verified = verify(made_up(small), Steps(small, CPU), finding, rounds=3)
    # otherwise it would take four times as long
    assert sum(verified.after) < 2 * sum(verified.before)


@pytest.mark.parametrize(
    ("after", "line"),
    [
        ([0.1, 0.1], "measured 2.00x (2.00 to 2.00); 200.0 -> 100.0 ms"),
        ([0.05, 0.15], "measured 2.00x (1.33 to 4.00); 200.0 -> 100.0 ms"),
    ],
)
def test_prediction_and_measurement_are_one_line(after, line):
    verified = Verified(Finding("a title", "", (), 0.08), 1.3, [0.2, 0.2], after)
    assert str(verified) == f"verified   a title: predicted 1.30x, {line}"


def test_the_prediction_stays_what_it_was_when_the_machine_has_changed_its_speed():
    profiled = made_up(small_config())
    step = profiled.measured.seconds
    finding = Finding("a title", "", (), step / 1.3)
    verified = Verified(finding, step / finding.seconds, [0.9 * step], [0.7 * step])
    assert "predicted 1.30x" in prediction(profiled, finding)
    assert str(verified).count("predicted") == 1 and "predicted 1.30x, measured 1.29x" in str(
        verified
    )


def test_who_else_used_the_processor_is_said():
    verified = Verified(Finding("", "", (), 1.0), 1.0, [1.0], [1.0], crowding="others are")
    assert str(verified).endswith("; not to be trusted: others are")
