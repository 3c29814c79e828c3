"""Tests of the verdict on a run."""

import math
from dataclasses import replace

import pytest

from moebius.config.files import to_toml
from moebius.config.phases import Phase
from moebius.report.run import read_run
from moebius.report.verdict import Verdict, verdict
from tests.report.made_up_run import (
    EVEN,
    TOKENS,
    alarm,
    collapsed,
    config_of,
    even,
    falling,
    metrics_lines,
    write_run,
)

ALL = range(1, 21)
LONG = ("--train.steps=40",)


def judged(folder, *arguments, **options) -> Verdict:
    """Return the verdict on a made-up run."""
    return verdict(read_run(write_run(folder / "run", *arguments, **options)))


def test_a_healthy_run(tmp_path):
    found = judged(tmp_path)
    assert found.level == "good"
    assert str(found) == (
        "Healthy: the loss fell from 6.00 to 2.21 (held-out 2.20, 1.00 bits per byte), and the "
        "experts are used evenly (CV at most 0.00, none is dead); nothing has to be done."
    )


def test_a_run_that_is_not_finished(tmp_path):
    found = judged(tmp_path, flags=LONG)
    assert (found.level, found.word) == ("calm", "Healthy so far")
    assert "it ended at step 20 of 40" in found.why
    assert f"`moebius resume {tmp_path / 'run'}` trains the rest" in found.todo


def test_a_run_without_lines(tmp_path):
    assert judged(tmp_path, []).word == "Nothing to judge"


def test_a_run_that_has_just_begun(tmp_path):
    assert judged(tmp_path, metrics_lines([1, 2]), flags=LONG).word == "Too early to judge"


@pytest.mark.parametrize(
    "loss",
    [
        lambda step: falling(step) if step < 12 else 2 + (step - 12),
        lambda step: 1.0 + step,
        lambda step: falling(step) if step < 20 else None,
    ],
    ids=["it rises again", "it only rises", "it is not finite"],
)
def test_a_run_that_diverged(tmp_path, loss):
    found = judged(tmp_path, metrics_lines(ALL, loss=loss))
    assert (found.level, found.word) == ("bad", "Diverged")
    assert "lower train.lr (it was 0.01)" in found.todo


def test_a_run_that_skipped_its_last_updates(tmp_path):
    events = [{"event": "skipped", "step": n, "in_a_row": n - 18} for n in (19, 20, 21, 22)]
    found = judged(tmp_path, metrics_lines(range(1, 19)), events)
    assert found.word == "Diverged"
    assert "the last 4 updates, up to step 22, were skipped" in found.why


def test_updates_that_were_skipped_long_ago_do_not_matter(tmp_path):
    events = [{"event": "skipped", "step": n, "in_a_row": n} for n in (1, 2, 3, 4)]
    assert judged(tmp_path, None, events).word == "Healthy"


def test_skipped_updates_that_the_run_went_back_from_do_not_matter(tmp_path):
    events = [{"event": "skipped", "step": n, "in_a_row": n - 24} for n in (25, 26, 27, 28)]
    spike = alarm(30, "loss_spike", -1, action="roll_back", done="rolled back", rewound_to=10)
    assert judged(tmp_path, None, [*events, spike]).word == "Healthy"
    assert judged(tmp_path / "again", None, events).word == "Diverged"


@pytest.mark.parametrize(("begin", "word"), [(10, "Healthy"), (5, "Diverged")])
def test_losses_of_different_mixtures_are_not_compared(tmp_path, begin, word):
    folder = write_run(
        tmp_path / "run", metrics_lines(ALL, loss=lambda n: 2.0 if n <= 10 else 3.0)
    )
    config = config_of("--data.source=a,b")
    phases = (
        Phase(until=begin * TOKENS),
        Phase(until=15 * TOKENS, weights=(0.9, 0.1)),
        Phase(until=20 * TOKENS, weights=(0.9, 0.1), seq_len=512),
    )
    config = replace(config, train=replace(config.train, phases=phases))
    (folder / "config.toml").write_text(to_toml(config), "utf-8")
    assert verdict(read_run(folder)).word.startswith(word)


@pytest.mark.parametrize("noise", [0.1, 0.25])
def test_a_noisy_loss_has_not_diverged(tmp_path, noise):
    lines = metrics_lines(range(1, 201), loss=lambda n: falling(n) + noise * math.sin(n * n))
    assert judged(tmp_path, lines).word == "Healthy"


@pytest.mark.parametrize(
    ("steps", "word"), [(49, "Too early to judge"), (50, "Collapsed"), (99, "Collapsed")]
)
def test_experts_are_not_dead_before_an_alarm_could_fire(tmp_path, steps, word):
    lines = metrics_lines(range(1, steps + 1), counts=collapsed)
    flags = ["--observe.dead_expert.patience=50", "--observe.cv.patience=1000"]
    assert judged(tmp_path, lines, flags=flags).word == word


@pytest.mark.parametrize(("steps", "word"), [(99, "Too early to judge"), (100, "Unbalanced")])
def test_a_layer_is_not_uneven_before_an_alarm_could_fire(tmp_path, steps, word):
    lines = metrics_lines(range(1, steps + 1), counts=lambda n: [[500, 250, 150, 100], [], EVEN])
    found = judged(tmp_path, lines, flags=["--observe.cv.patience=100"])
    assert found.word == word


def test_nothing_is_said_of_the_balance_before_an_alarm_could_fire(tmp_path):
    found = judged(tmp_path, flags=["--observe.dead_expert.patience=50"])
    assert found.word == "Healthy" and "expert" not in found.why


def test_a_collapsed_run_without_balancing(tmp_path):
    flags = ["--model.aux_loss_coeff=0", "--model.router_bias_rate=0"]
    found = judged(tmp_path, metrics_lines(ALL, counts=collapsed), flags=flags)
    assert (found.level, found.word) == ("bad", "Collapsed")
    assert "3 of 8 experts are dead at step 20, and 1 of 2 layers is uneven" in found.why
    assert "CV of 1.73 (layer 0)" in found.why
    assert "nothing balances the experts of this run" in found.todo


def test_a_collapsed_run_with_a_balance_loss(tmp_path):
    flags = ["--model.aux_loss_coeff=0.02"]
    found = judged(tmp_path, metrics_lines(ALL, counts=collapsed), flags=flags)
    assert found.todo.startswith("raise model.aux_loss_coeff (0.02)")


def test_a_few_dead_experts(tmp_path):
    lines = metrics_lines(ALL, counts=lambda step: [[340, 330, 330, 0], [], EVEN])
    found = judged(tmp_path, lines)
    assert (found.level, found.word) == ("bad", "Experts are dying")


def test_an_expert_that_recovered(tmp_path):
    lines = metrics_lines(range(1, 41), counts=lambda n: collapsed(n) if n < 10 else even(n))
    assert judged(tmp_path, lines).word == "Healthy"


def test_an_uneven_layer_without_an_alarm(tmp_path):
    lines = metrics_lines(ALL, counts=lambda step: [[500, 250, 150, 100], [], EVEN])
    found = judged(tmp_path, lines)
    assert (found.level, found.word) == ("warn", "Unbalanced")
    assert "1 of 2 layers has a CV above 0.3, the worst 0.62 (layer 0)" in found.why


def test_an_uneven_layer_is_compared_with_the_limit_of_the_run(tmp_path):
    lines = metrics_lines(ALL, counts=lambda step: [[500, 250, 150, 100], [], EVEN])
    found = judged(tmp_path, lines, flags=["--observe.cv.threshold=0.5"])
    assert "1 of 2 layers has a CV above 0.5, the worst 0.62 (layer 0)" in found.why


def test_a_dead_expert_of_a_run_without_counts_is_no_collapse(tmp_path):
    lines = metrics_lines(ALL)
    for line in lines:
        del line["tokens_per_expert"]
    found = judged(tmp_path, lines, [alarm(18, "dead_expert", experts=[2])])
    assert found.word == "Experts are dying"


def test_an_open_alarm(tmp_path):
    events = [alarm(15, "routing_entropy", 2, value=0.001, threshold=0.01)]
    found = judged(tmp_path, None, events)
    assert found.word == "Unbalanced"
    assert found.why == "layer 2: entropy of the routing 0.001, below 0.010 since step 5"


def test_an_alarm_that_is_over_does_not_matter(tmp_path):
    events = [alarm(5, "routing_entropy", 2), alarm(9, "routing_entropy", 2, over=True)]
    assert judged(tmp_path, None, events).word == "Healthy"


def test_batches_that_are_uneven_one_by_one(tmp_path):
    counts = [[400, 100, 400, 100], [100, 400, 100, 400]]
    lines = metrics_lines(range(1, 101), counts=lambda n: [counts[n % 2], [], EVEN])
    found = judged(tmp_path, lines, [alarm(15, "cv")])
    assert found.word == "Healthy"
    assert "the alarm cv is still on" in found.why


def test_an_alarm_that_stopped_the_run(tmp_path):
    events = [alarm(20, "router_logits", 1, value=7, threshold=0, action="stop")]
    found = judged(tmp_path, None, events)
    assert found.word == "Stopped by an alarm"
    assert "router_z_loss_coeff" in found.todo


def test_a_run_that_overfits(tmp_path):
    lines = metrics_lines(ALL, evaluated=lambda step: 2 + abs(step - 10) / 10)
    found = judged(tmp_path, lines)
    assert (found.level, found.word) == ("warn", "Overfitted")
    assert "best at step 10 (2.000) and is 3.000 at step 20" in found.why


def rises_from_10(step: int) -> float:
    """Return a held-out loss that rises from step 10 on."""
    return 2 + 0.02 * max(0, step - 10)


def jumps_falls_and_rises(step: int) -> float:
    """Return a held-out loss that jumps after step 10, falls until step 25 and rises again."""
    return 2.0 if step <= 10 else 2.3 + 0.02 * abs(step - 25)


@pytest.mark.parametrize(
    ("begin", "evaluated", "word"),
    [
        (10, rises_from_10, "Healthy"),
        (2, rises_from_10, "Overfitted"),
        (9.5, rises_from_10, "Healthy"),  # its last step is step 10
        (10, jumps_falls_and_rises, "Overfitted"),
        (25, jumps_falls_and_rises, "Healthy"),
        (10, lambda step: 2.5 if step > 10 else 2.0, "Healthy"),
    ],
)
def test_a_held_out_loss_that_rises_with_another_mixture_is_no_overfitting(
    tmp_path, begin, evaluated, word
):
    folder = write_run(tmp_path / "run", metrics_lines(range(1, 41), evaluated=evaluated))
    config = config_of("--data.source=a,b")
    weights = (0.1, 0.9)
    phases = (Phase(until=int(begin * TOKENS)), Phase(until=40 * TOKENS, weights=weights))
    config = replace(config, train=replace(config.train, phases=phases))
    (folder / "config.toml").write_text(to_toml(config), "utf-8")
    assert verdict(read_run(folder)).word == word


def test_a_dense_run(tmp_path):
    lines = metrics_lines(ALL, counts=lambda step: [[], []])
    found = judged(tmp_path, lines, flags=["--model.num_experts=0"])
    assert found.word == "Healthy" and "expert" not in found.why


def test_a_run_whose_configuration_is_lost(tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / "config.toml").unlink()
    found = verdict(read_run(folder))
    assert found.word == "Healthy" and "config.toml" in found.todo
