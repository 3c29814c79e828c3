"""What a run prints on a terminal, and what it prints elsewhere."""

import os
import re
import sys
from typing import Any

import pytest

from moebius.observe.metrics import StepMetrics
from moebius.observe.terminal import Terminal, describe, table
from moebius.parallel.process import Process
from tests.observe.made_up import dense_metrics, metrics_of
from tests.pipes import closed_pipe


def uneven_metrics(**changes: Any) -> StepMetrics:
    """Return a step of three layers with two experts each, three of which are dead."""
    columns: dict[str, Any] = {
        "loss": 3.14159,
        "cv": [0.0, 0.2, 0.7],
        "dead_experts": [0, 1, 2],
        "tokens_per_expert": [[4, 4], [5, 3], [8, 0]],
        "dropped_share": [0.0, 0.0, 0.0],
        "unrouted_share": [0.0, 0.0, 0.0],
    }
    return metrics_of(**(columns | changes))


def test_the_worst_layer_and_all_dead_experts():
    assert describe(uneven_metrics()) == "loss 3.142  12.3k tok/s  cv 0.70 (layer 2)  dead 3"


def test_layers_without_experts_are_never_the_worst():
    counts = [[], [5, 3], []]
    line = describe(
        uneven_metrics(cv=[0.0, 0.0, 0.0], dead_experts=[0, 0, 0], tokens_per_expert=counts)
    )
    assert "cv 0.00 (layer 1)" in line


def test_lost_tokens_are_shown_where_there_are_any():
    line = describe(
        uneven_metrics(dropped_share=[0.0, 0.12, 0.04], unrouted_share=[0.5, 0.0, 0.0])
    )
    assert line.endswith("dead 3  dropped 12%  unrouted 50%")


def test_a_dense_model_has_no_balance():
    assert describe(dense_metrics(loss=3.14159)) == "loss 3.142  12.3k tok/s"


def test_an_evaluation_and_a_fast_device():
    line = describe(uneven_metrics(tokens_per_second=1.5e6, val_loss=2.0, val_bpb=1.25))
    assert "1.50M tok/s" in line and line.endswith("val 2.000 (1.250 bpb)")
    line = describe(uneven_metrics(val_loss=2.0, val_bpb=None))  # a tokenizer that loses text
    assert line.endswith("val 2.000 (no bpb)")


@pytest.mark.parametrize("progress", [True, False])
def test_without_a_terminal_every_logged_step_is_one_line(progress, capsys, tmp_path):
    terminal = Terminal(30, progress=progress)
    terminal.open(tmp_path, 10)
    for step in range(11, 21):
        terminal.step(step)
    terminal.write(uneven_metrics())
    terminal.write(uneven_metrics(step=30, val_loss=2.0, val_bpb=1.0))
    terminal.close()
    assert capsys.readouterr().out.splitlines() == [
        "step 20/30  loss 3.142  12.3k tok/s  cv 0.70 (layer 2)  dead 3",
        "step 30/30  loss 3.142  12.3k tok/s  cv 0.70 (layer 2)  dead 3  val 2.000 (1.000 bpb)",
    ]


def test_on_a_terminal_there_is_a_bar(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "150")
    terminal = Terminal(30)
    terminal.open(tmp_path, 0)
    assert terminal.is_live
    terminal.say("[bold] is text, not markup")
    terminal.step(20)
    terminal.write(uneven_metrics())
    terminal.progress.refresh()
    terminal.close()
    shown = capsys.readouterr().out
    for text in ("step 20/30", "loss 3.142", "cv 0.70 (layer 2)", "dead 3"):
        assert text in shown
    assert "[bold] is text, not markup" in shown


def test_a_table_is_aligned():
    assert table([("a", "one"), ("long", "two")]) == ["a     one", "long  two"]


def test_a_process_that_does_not_write_prints_nothing(capsys, tmp_path):
    terminal = Terminal(30, process=Process(rank=1, world_size=2))
    terminal.open(tmp_path, 0)
    terminal.write(uneven_metrics())
    terminal.say("a line")
    terminal.close()
    assert not terminal.is_live and capsys.readouterr().out == ""


def test_a_roll_back_moves_the_bar_back(tmp_path):
    terminal = Terminal(30)
    terminal.open(tmp_path, 0)
    terminal.step(20)
    terminal.rewind(5)
    assert terminal.progress.tasks[0].completed == 5
    terminal.close()


@pytest.mark.parametrize("is_live", [True, False])
def test_a_terminal_that_is_gone_is_reported_and_nothing_is_raised(is_live, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "stdout", closed_pipe())
    if is_live:
        monkeypatch.setenv("FORCE_COLOR", "1")
    terminal = Terminal(30)
    lost: list[Exception] = []
    terminal.when_lost(lost.append)
    terminal.open(tmp_path, 0)
    terminal.write(uneven_metrics())
    terminal.say("a line")
    terminal.progress.refresh()
    terminal.close()
    assert [type(error) for error in lost] == [BrokenPipeError]


def test_without_a_stdout_nothing_is_lost(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "stdout", None)
    terminal = Terminal(30)
    terminal.when_lost(lambda error: pytest.fail(str(error)))
    terminal.open(tmp_path, 0)
    terminal.write(uneven_metrics())
    terminal.close()


def test_control_characters_are_escaped(capsys):
    Terminal(30).say("\x1b]0;title\x07 \x9b1m \u202e")
    assert capsys.readouterr().out == "\\x1b]0;title\\x07 \\x9b1m \\u202e\n"


WIDTHS = (20, 33, 60, 80, 100, 200)


def shown_rows(text: str) -> list[str]:
    """Return what is written into each row of a terminal, one update after another."""
    return [
        row
        for line in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text).split("\n")
        for row in line.split("\r")
    ]


@pytest.mark.parametrize("width", WIDTHS)
def test_the_bar_is_one_row_of_the_terminal(width, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(width))
    terminal = Terminal(1_000_000)
    terminal.open(tmp_path, 0)
    terminal.step(200_000)
    terminal.write(uneven_metrics(dropped_share=[0.0, 0.1, 0.0], val_loss=2.0, val_bpb=1.0))
    capsys.readouterr()
    terminal.progress.refresh()
    (bar,) = filter(None, shown_rows(capsys.readouterr().out))
    assert len(bar) <= width
    assert bar.startswith("step 200,000/1,000,000"[: width // 2])
    assert ("loss 3.142" in bar) == (width >= 60)
    assert ("val 2.000 (1.000 bpb)" in bar) == (width == 200)
    terminal.say("a line " * 50)
    *_, line, bar = filter(None, shown_rows(capsys.readouterr().out))
    assert line == "a line " * 50 and len(bar) <= width  # wrapped by the terminal, not by us
    terminal.close()


def test_the_bar_follows_the_size_of_the_terminal(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("COLUMNS", raising=False)
    terminal = Terminal(30)
    terminal.open(tmp_path, 0)
    terminal.write(uneven_metrics(val_loss=2.0, val_bpb=1.0))
    for width in (120, 40, 70):
        size = os.terminal_size((width, 24))
        monkeypatch.setattr(os, "get_terminal_size", lambda *_, size=size: size)
        capsys.readouterr()
        terminal.progress.refresh()
        (bar,) = filter(None, shown_rows(capsys.readouterr().out))
        assert width // 2 < len(bar) <= width
    terminal.close()
