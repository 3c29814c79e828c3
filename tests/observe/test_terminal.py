"""What a run prints on a terminal, and what it prints elsewhere."""

import json
import sys
import time
from typing import Any

import pytest

from moebius.observe.metrics import StepMetrics
from moebius.observe.terminal import Terminal, describe, kind_of, table
from moebius.parallel.process import Process
from tests.emulator import Emulator, TerminalStream, wait_until
from tests.observe.made_up import dense_metrics, metrics_of
from tests.pipes import closed_pipe
from tests.report.made_up_run import metrics_lines


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


def screen_of(monkeypatch: pytest.MonkeyPatch) -> Emulator:
    """Return a terminal of 80 columns and 24 rows, which is stdout from now on."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")
    monkeypatch.setenv("TERM", "xterm-256color")
    terminal = Emulator(80, 24)
    monkeypatch.setattr(sys, "stdout", TerminalStream(terminal))
    return terminal


def test_on_a_terminal_there_is_a_view_and_its_log_stays(monkeypatch, tmp_path):
    screen = screen_of(monkeypatch)
    terminal = Terminal(30)
    assert terminal.is_live
    terminal.open(tmp_path, 0)
    taken = sys.stdout
    terminal.say("step 3: alarm: [bold] is text, \x1b[2J, not markup")
    terminal.note("step 10: checkpoint", "checkpoint")
    terminal.step(20)
    terminal.write(uneven_metrics())
    print("a warning of a library")
    wait_until(lambda: any("loss 3.142" in row for row in screen.shown))
    shown = "\n".join(screen.shown)
    for text in ("step 20/30", "loss 3.142", "dead", "[bold] is text", "step 10: checkpoint"):
        assert text in shown
    terminal.close()
    assert sys.stdout is not taken and sys.stdout.write("after\n")
    assert screen.log == [
        "step 3: alarm: [bold] is text, \\x1b[2J, not markup",
        "step 20/30  loss 3.142  12.3k tok/s  cv 0.70 (layer 2)  dead 3",
        "a warning of a library",
        "after",
    ]
    assert screen.is_cursor_shown and not screen.is_synchronized


def test_a_resumed_run_shows_the_losses_before(monkeypatch, tmp_path):
    screen_of(monkeypatch)
    lines = metrics_lines(range(1, 11), evaluated=lambda step: 2.5)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text)
    terminal = Terminal(30)
    terminal.open(tmp_path, 10)
    assert [point.step for point in terminal.so_far.points] == list(range(1, 11))
    terminal.rewind(5)
    assert terminal.so_far.step == 5 and terminal.so_far.points[-1].step == 5
    terminal.close()


@pytest.mark.parametrize(("name", "value"), [("TERM", "dumb"), ("TERM", "unknown")])
def test_a_terminal_that_cannot_draw_gets_lines(name, value, monkeypatch, tmp_path):
    screen = screen_of(monkeypatch)
    monkeypatch.setenv(name, value)
    terminal = Terminal(30)
    terminal.open(tmp_path, 0)
    terminal.write(uneven_metrics())
    terminal.close()
    assert not terminal.is_live
    assert screen.log == ["step 20/30  loss 3.142  12.3k tok/s  cv 0.70 (layer 2)  dead 3"]


def test_a_pipe_is_no_terminal_whatever_force_color_says(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal(30)
    terminal.open(tmp_path, 0)
    terminal.write(uneven_metrics())
    terminal.close()
    assert not terminal.is_live
    line = "step 20/30  loss 3.142  12.3k tok/s  cv 0.70 (layer 2)  dead 3\n"
    assert capsys.readouterr().out == line


def test_the_time_that_is_left(monkeypatch):
    screen_of(monkeypatch)
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    terminal = Terminal(100)
    terminal._pace.append((100.0, 0))
    now[0] = 130.0
    terminal.write(uneven_metrics(step=10))
    now[0] = 133.0
    terminal._tell_time()
    assert terminal.so_far.seconds_left == pytest.approx(270 - 3)
    terminal.rewind(0)
    terminal._tell_time()
    assert terminal.so_far.seconds_left is None


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("step 3: alarm: layer 1: CV 1", "alarm"),
        ("step 3: alarm: layer 1: CV 1; balance loss 0.1 -> 0.2", "action"),
        ("step 3: over: layer 1: CV 1", "over"),
        ("step 3: loss or gradient not finite, update skipped", "skipped"),
        ("something", ""),
    ],
)
def test_kinds_of_events(line, kind):
    assert kind_of(line) == kind


def test_a_table_is_aligned():
    assert table([("a", "one"), ("long", "two")]) == ["a     one", "long  two"]


def test_a_process_that_does_not_write_prints_nothing(capsys, tmp_path):
    terminal = Terminal(30, process=Process(rank=1, world_size=2))
    terminal.open(tmp_path, 0)
    terminal.write(uneven_metrics())
    terminal.say("a line")
    terminal.close()
    assert not terminal.is_live and capsys.readouterr().out == ""


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
