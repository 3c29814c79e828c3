"""What is known of a run that another process trains, as its files grow, are cut and damaged."""

import json
from pathlib import Path
from typing import Any

import pytest

from moebius.errors import CheckpointError
from moebius.observe.expert_counts import ExpertCounts
from moebius.observe.json_lines import JsonLines
from moebius.train.ownership import Ownership
from moebius.watch import watched
from moebius.watch.watched import WatchedRun
from tests.observe.made_up import large_metrics
from tests.report.made_up_run import alarm, metrics_lines, write_run


@pytest.fixture(autouse=True)
def looks_each_time(monkeypatch):
    monkeypatch.setattr(watched, "OWNER_SECONDS", -1.0)


def append(path: Path, *values: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.writelines(json.dumps(value) + "\n" for value in values)


def test_a_finished_run(tmp_path):
    run = WatchedRun(write_run(tmp_path / "run", events=[alarm(7, "cv")]))
    said = run.update()
    assert run.so_far.state == "finished" and not run.is_trained
    assert run.so_far.step == run.so_far.total_steps == 20
    assert run.summary.startswith("run: finished  step 20/20  loss 2.200  500 tok/s  cv 0.00")
    assert len([line for line in said if line.startswith("step ")]) == 21
    assert "step 7: alarm: layer 0: CV of the load 0.50" in "\n".join(said)
    assert run.so_far.held_out and run.so_far.held_out.step == 20
    assert run.so_far.seconds == pytest.approx(20 * 1000 / 500)
    assert run.update() == []


def test_a_run_that_grows(tmp_path):
    folder = write_run(tmp_path / "run", metrics_lines([]))
    run = WatchedRun(folder)
    assert run.update() == [] and "no step logged yet" in run.summary
    assert run.so_far.state == "not running"
    lines = metrics_lines(range(1, 21))
    append(folder / "metrics.jsonl", *lines[:2])
    text = json.dumps(lines[2])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(text[:40])
    assert [line[:9] for line in run.update()] == ["step 1/20", "step 2/20"]
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(text[40:] + "\n")
    (folder / "checkpoints" / "step-00000003").mkdir(parents=True)
    assert [line[:9] for line in run.update()] == ["step 3/20", "step 3: c"]
    assert run.so_far.loads.summed()[1] == 1


def test_a_run_is_trained_as_long_as_its_lock_is_held(tmp_path, monkeypatch):
    run = WatchedRun(write_run(tmp_path / "run", metrics_lines(range(1, 11))))
    monkeypatch.setattr(watched, "is_owned", lambda folder: True)
    run.update()
    assert run.so_far.state == "training" and run.so_far.seconds_left == pytest.approx(20)
    monkeypatch.setattr(watched, "is_owned", lambda folder: False)
    run.update()  # killed, so that the lock file is still there
    assert run.so_far.state == "not running" and run.so_far.seconds_left is None


def test_looking_takes_no_lock_away(tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / ".lock").write_text(json.dumps({"process": 1, "host": "elsewhere"}))
    WatchedRun(folder).update()
    assert Ownership(folder, print)


def test_a_roll_back_cuts_the_file(tmp_path):
    folder = write_run(tmp_path / "run", metrics_lines(range(1, 11)))
    run = WatchedRun(folder)
    run.update()
    text = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    again = [json.dumps(line) + "\n" for line in metrics_lines(range(6, 13), loss=lambda n: 9.0)]
    (folder / "metrics.jsonl").write_text("".join([*text[:5], *again]))
    said = run.update()
    assert [line.split("  ")[0] for line in said] == [f"step {n}/20" for n in range(6, 13)]
    assert [point.step for point in run.so_far.points] == list(range(1, 13))
    assert [point.loss for point in run.so_far.points][4:7] == [2.8, 9.0, 9.0]
    append(folder / "metrics.jsonl", *metrics_lines([4]))  # whatever the reason, not twice
    run.update()
    assert [point.step for point in run.so_far.points] == [1, 2, 3, 4]


def test_events_that_are_cut_are_not_said_again(tmp_path):
    events = [alarm(step, "cv") for step in (3, 7, 9)]
    folder = write_run(tmp_path / "run", events=events)
    run = WatchedRun(folder)
    assert len([line for line in run.update() if "alarm: " in line]) == 3
    (folder / "events.jsonl").write_text("")
    append(folder / "events.jsonl", *events[:2], alarm(11, "cv"))
    assert [line.split(":")[0] for line in run.update()] == ["step 11"]
    shown = [happening.text.split(":")[0] for happening in run.so_far.happenings]
    assert shown[:3] == ["step 3", "step 7", "step 11"]


def test_steps_that_are_logged_while_the_training_ends_are_read(tmp_path, monkeypatch):
    folder = write_run(tmp_path / "run", metrics_lines(range(1, 11)))
    run = WatchedRun(folder)
    run.update()

    def ended(folder: Path) -> bool:
        append(folder / "metrics.jsonl", *metrics_lines([20]))
        return False

    monkeypatch.setattr(watched, "is_owned", ended)
    run.update()
    assert not run.is_trained and run.so_far.step == 20


def test_damage_is_said_once_and_the_rest_is_read(tmp_path):
    folder = write_run(tmp_path / "run", metrics_lines(range(1, 5)))
    run = WatchedRun(folder)
    run.update()
    for _ in range(2):
        with (folder / "metrics.jsonl").open("ab") as file:
            file.write(b"\x00\xff\n{}\n")
    (folder / "config.toml").write_text("[train]\nsteps = 'many'\n")
    said = run.update()
    assert ["steps" in line for line in said] == [True, False] and "damaged" in said[1]
    assert run.so_far.step == 4 and run.so_far.total_steps == 20
    assert len([h for h in run.so_far.happenings if h.kind == "alarm"]) == 2
    assert run.update() == []


def test_a_line_of_another_version(tmp_path):
    (line,) = metrics_lines([3])
    for name in ("mfu", "memory_gb", "balance_loss", "dropped_share"):
        del line[name]
    run = WatchedRun(write_run(tmp_path / "run", [line]))
    run.update()
    assert run.so_far.step == 3 and run.so_far.latest is None
    assert run.summary == "run: not running  step 3/20"


@pytest.mark.parametrize("is_closed", [False, True])
def test_many_experts_are_read_from_their_own_files(is_closed, tmp_path):
    folder = write_run(tmp_path / "run", [])
    sinks = JsonLines(), ExpertCounts()
    for sink in sinks:
        sink.open(folder, 0)
        for step in (1, 2):
            sink.write(large_metrics(step))
    if is_closed:
        sinks[1].close()
    run = WatchedRun(folder)
    (_, last) = run.update()
    assert "cv " in last and "(layer " in last
    counts, _ = run.so_far.loads.summed()
    expected = large_metrics(2).layers
    assert sorted(counts) == [0, 2]
    assert counts[0].tolist() == expected[0].tokens_per_expert


def test_a_run_that_is_deleted(tmp_path):
    folder = write_run(tmp_path / "run")
    run = WatchedRun(folder)
    run.update()
    folder.rename(tmp_path / "other")
    run.update()
    assert run.so_far.state == "its directory is gone"


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(CheckpointError, match="not a run directory"):
        WatchedRun(tmp_path)
