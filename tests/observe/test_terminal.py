"""What a run shows where there is a terminal and where there is none."""

from typing import Any

import pytest

from moebius.observe.terminal import Terminal, describe, table


def metrics(**changes: Any) -> dict[str, Any]:
    figures: dict[str, Any] = {
        "step": 20,
        "loss": 3.14159,
        "tokens_per_second": 12_345.0,
        "cv": [0.0, 0.2, 0.7],
        "dead_experts": [0, 1, 2],
        "tokens_per_expert": [[4, 4], [5, 3], [8, 0]],
        "dropped_share": [0.0, 0.0, 0.0],
        "unrouted_share": [0.0, 0.0, 0.0],
    }
    return figures | changes


def test_the_worst_layer_and_all_dead_experts():
    assert describe(metrics()) == "loss 3.142  12.3k tok/s  cv 0.70 (layer 2)  dead 3"


def test_layers_without_experts_are_never_the_worst():
    counts = [[], [5, 3], []]
    told = describe(metrics(cv=[0.0, 0.0, 0.0], dead_experts=[0, 0, 0], tokens_per_expert=counts))
    assert "cv 0.00 (layer 1)" in told


def test_lost_tokens_are_told_where_there_are_any():
    told = describe(metrics(dropped_share=[0.0, 0.12, 0.04], unrouted_share=[0.5, 0.0, 0.0]))
    assert told.endswith("dead 3  dropped 12%  unrouted 50%")


def test_a_dense_model_has_no_balance():
    dense = metrics(cv=[0.0, 0.0], dead_experts=[0, 0], tokens_per_expert=[[], []])
    assert describe(dense) == "loss 3.142  12.3k tok/s"


def test_an_evaluation_and_a_fast_device():
    told = describe(metrics(tokens_per_second=1.5e6, val_loss=2.0, val_bpb=1.25))
    assert "1.50M tok/s" in told and told.endswith("val 2.000 (1.250 bpb)")


@pytest.mark.parametrize("progress", [True, False])
def test_without_a_terminal_every_logged_step_is_one_line(progress, capsys):
    with Terminal(30, first_step=10, progress=progress) as terminal:
        for step in range(11, 21):
            terminal.step(step)
        terminal.metrics(metrics())
        terminal.metrics(metrics(step=30, val_loss=2.0, val_bpb=1.0))
    assert capsys.readouterr().out.splitlines() == [
        "step 20/30  loss 3.142  12.3k tok/s  cv 0.70 (layer 2)  dead 3",
        "step 30/30  loss 3.142  12.3k tok/s  cv 0.70 (layer 2)  dead 3  val 2.000 (1.000 bpb)",
    ]


def test_on_a_terminal_there_is_a_bar(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "150")
    with Terminal(30) as terminal:
        assert terminal.is_live
        terminal.say("[bold] is text, not markup")
        terminal.step(20)
        terminal.metrics(metrics())
        terminal.progress.refresh()
    shown = capsys.readouterr().out
    assert "step 20/30" in shown and "loss 3.142" in shown and "cv 0.70 (layer 2)" in shown and "dead 3" in shown
    assert "[bold] is text, not markup" in shown


def test_a_table_is_aligned():
    assert table([("a", "one"), ("long", "two")]) == ["a     one", "long  two"]
