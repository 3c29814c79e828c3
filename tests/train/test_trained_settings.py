"""A resumed run knows what each checkpoint was trained with, and says what is different."""

import json
import os
import re
import signal
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from moebius.config import Config
from moebius.config.fields import plain
from moebius.errors import ConfigError, ForeignCheckpointError, Interrupted
from moebius.observe.json_lines import read_lines
from moebius.train import checkpoint, checkpoint_store
from moebius.train.session import Session, resume, start
from moebius.train.trained_settings import settings_of, undone
from tests.train.checkpoints import names_in
from tests.train.runs import before_step, new_session, silent, train, with_train
from tests.train.test_loop import stop_in_evaluation
from tests.train.test_rollback import SPOILED, spoil, watching
from tests.train.test_session_damaged import rewrite_state, without


def forget_settings(session: Session) -> None:
    """Make all checkpoints of the run ones that an earlier version could have written."""
    for folder in checkpoint_store.complete(session.run.checkpoints):
        rewrite_state(folder, without("config"))


def changed_run(small: Config) -> Session:
    """Return a run whose settings were changed after step 6, and that was trained to step 12."""
    config = with_train(small, steps=6, checkpoint_every=3, keep_last=0, batch_size=4, lr=6e-3)
    session = new_session(config)
    train(session)
    changed = with_train(config, steps=12, batch_size=6, lr=3e-3)
    train(resume(changed, session.run, silent))
    return session


@pytest.mark.parametrize(
    ("step", "is_old"),
    [
        (3, False),
        (6, True),
        pytest.param(3, True, marks=pytest.mark.heavy),
        pytest.param(6, False, marks=pytest.mark.heavy),
    ],
)
def test_an_older_step_names_the_settings_that_it_was_not_trained_with(small, step, is_old):
    session = changed_run(small)
    if is_old:
        forget_settings(session)
    lines: list[str] = []
    config = with_train(session.run.config(), steps=9)
    resumed = resume(config, session.run, lines.append, step=step)
    assert [line for line in lines if line.startswith("changed ")] == [
        f"changed from step {step + 1} on: train.steps 6 -> 9",
        f"changed from step {step + 1} on: train.batch_size 4 -> 6",
        f"changed from step {step + 1} on: train.lr 0.006 -> 0.003",
    ]
    assert any(line.startswith(f"the learning rate jumps: step {step + 1} has") for line in lines)
    train(resumed)
    (aside,) = session.run.root.glob("aside-*")
    *earlier, event = read_lines(session.run.events_path)
    assert len(earlier) == (step == 6)  # the change that was made after step 6
    assert (event["step"], event["aside"]) == (step, aside.name)
    assert event["changed"] == {
        "train.steps": [6, 9],
        "train.batch_size": [4, 6],
        "train.lr": [0.006, 0.003],
    }
    assert event["lr"][0] != pytest.approx(event["lr"][1])
    kept = read_lines(aside / "events.jsonl") if step == 3 else []
    assert [event["step"] for event in kept] == ([6] if step == 3 else [])
    assert resume(session.run.config(), session.run, silent).resumed is None


def test_a_fall_back_to_before_a_change_is_a_change_at_that_step(small):
    session = changed_run(small)
    for step in (6, 9, 12):
        (session.run.checkpoints / f"step-{step:08d}" / "model.safetensors").unlink()
    lines: list[str] = []
    train(resume(session.run.config(), session.run, lines.append))
    assert "changed from step 4 on: train.batch_size 4 -> 6" in lines
    (event,) = read_lines(session.run.events_path)
    assert event["step"] == 3 and set(event["changed"]) == {
        "train.steps",
        "train.batch_size",
        "train.lr",
    }


@pytest.mark.heavy
def test_a_change_is_recorded_once_although_the_run_is_killed_before_its_next_checkpoint(
    small, monkeypatch
):
    session = changed_run(small)
    config = with_train(session.run.config(), steps=20, checkpoint_every=0, grad_clip=0.5)

    def die(model: Any) -> None:
        raise KeyboardInterrupt

    for _ in range(3):
        resumed = resume(config, session.run, silent)
        assert resumed.resumed and set(resumed.resumed.changed) == {
            "train.steps",
            "train.checkpoint_every",
            "train.grad_clip",
        }
        with monkeypatch.context() as patched:
            before_step(14, patched, die)
            with pytest.raises(KeyboardInterrupt):
                train(resumed)
    assert [event["step"] for event in read_lines(session.run.events_path)] == [6, 12]
    # A change back is one, too, although nothing has been trained with the other settings.
    again = with_train(config, steps=12, checkpoint_every=3, grad_clip=1.0)
    lines: list[str] = []
    train(resume(again, session.run, lines.append))
    assert "the settings from step 13 on are those of the steps before" in lines
    assert read_lines(session.run.events_path)[-1]["changed"] == {}


def test_one_moment_has_one_number(small, capsys):
    session = changed_run(small)
    capsys.readouterr()
    lines: list[str] = []
    train(resume(with_train(session.run.config(), steps=14), session.run, lines.append))
    shown = [line for line in lines if "changed" in line]
    shown += [line for line in capsys.readouterr().out.splitlines() if "resumed" in line]
    assert shown == [
        "changed from step 13 on: train.steps 12 -> 14",
        "resumed with 1 changed setting from step 13 on",
    ]


@pytest.mark.parametrize("is_old", [False, True])
def test_a_roll_back_to_before_a_change_says_what_has_changed(small, is_old):
    config = watching(small, steps=15)
    session = start(config, "small", silent)
    train(session)
    if is_old:
        forget_settings(session)
    changed = with_train(config, steps=30, lr=8e-3)
    resumed = resume(changed, session.run, silent)
    spoil(resumed, {SPOILED})
    train(resumed)
    events = read_lines(session.run.events_path)
    assert [event["event"] == "resumed" for event in events] == [True, False, True]
    assert "rolled back to step 15" in events[1]["done"]
    assert "changed from step 16 on: train.lr 0.01 -> 0.008" in events[1]["done"]
    assert events[2]["step"] == 15 and events[2]["changed"]["train.lr"] == [0.01, 0.008]
    # The checkpoint that the roll-back has written again says what it was trained with.
    values = checkpoint.read_state(session.run.checkpoints / "step-00000015")
    trained = settings_of(values)
    assert trained is None if is_old else trained and trained.train.lr == 0.01


def edited(session: Session, **changes: Any) -> None:
    """Edit the run's config.toml by hand."""
    text = session.run.config_path.read_text()
    for name, value in changes.items():
        text, count = re.subn(rf"^{name} = .*$", f"{name} = {value}", text, flags=re.MULTILINE)
        assert count == 1
    session.run.config_path.write_text(text)


def test_without_its_record_a_run_is_compared_with_its_checkpoint(small):
    session = new_session(small, steps=6)
    train(session)
    session.run.record_path.unlink()
    edited(session, seed=7, lr=0.5)
    lines: list[str] = []
    with pytest.raises(ConfigError, match=r"train\.seed=7: a resumed run keeps train\.seed=0"):
        resume(session.run.config(), session.run, lines.append)
    assert len(lines) == 1 and lines[0].startswith(f"{session.run.record_path}: missing (")
    edited(session, seed=0, steps=9)
    train(resume(session.run.config(), session.run, lines.append))
    assert "changed from step 7 on: train.lr 0.003 -> 0.5" in lines
    changed = read_lines(session.run.events_path)[0]["changed"]
    assert set(changed) == {"train.lr", "train.steps"}
    lines.clear()
    resume(session.run.config(), session.run, lines.append)
    assert not any("run.json" in line for line in lines)  # it has one again


def test_without_record_and_settings_it_is_said_that_nothing_can_be_compared(small):
    session = new_session(small, steps=6)
    train(session)
    session.run.record_path.unlink()
    forget_settings(session)
    lines: list[str] = []
    resume(session.run.config(), session.run, lines.append)
    assert "changes to config.toml cannot be noticed" in lines[1]


@pytest.mark.parametrize("changes", [{"seed": 3}, {"common_start": 0.5}])
def test_a_checkpoint_of_another_run_is_refused(small, changes, tmp_path: Path):
    """The other run has the same model and the same text."""
    session = new_session(small)
    other = new_session(small, name="other", **changes)
    train(other)
    session.run.checkpoints.mkdir()
    (other.run.checkpoints / "step-00000012").rename(session.run.checkpoints / "step-00000012")
    name, value = next(iter(changes.items()))
    with pytest.raises(ForeignCheckpointError, match=rf"trained with train\.{name}={value}, but"):
        resume(small, session.run, silent)
    assert names_in(session.run.checkpoints) == ["step-00000012"]


@pytest.mark.parametrize("changes", [{"steps": 15}, {"eval_every": 0, "steps": 14}])
def test_an_evaluation_is_made_up_for_if_the_settings_change(small, changes, monkeypatch):
    session = new_session(small)
    with monkeypatch.context() as patched:
        stop_in_evaluation(3, patched)
        with pytest.raises(Interrupted, match="stopped at step 12"):
            train(session)
    train(resume(with_train(small, **changes), session.run, silent))
    lines = {line["step"]: line for line in read_lines(session.run.metrics_path)}
    assert "val_loss" in lines[12]


def test_a_step_that_was_not_to_be_evaluated_is_not(small, monkeypatch):
    session = new_session(small, eval_every=0, steps=6)
    before_step(4, monkeypatch, lambda model: stop_now())
    with pytest.raises(Interrupted, match="stopped at step 4"):
        train(session)
    train(resume(with_train(session.config, eval_every=2), session.run, silent))
    lines = {line["step"]: line for line in read_lines(session.run.metrics_path)}
    assert [step for step, line in lines.items() if "val_loss" in line] == [6]


def stop_now() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_settings_are_read_as_they_were_written(small):
    config = replace(small, model=replace(small.model, num_experts=(3, 4)))
    assert settings_of({"config": json.loads(json.dumps(plain(config)))}) == config


@pytest.mark.parametrize(
    "values",
    [{}, {"config": None}, {"config": []}, {"config": {"train": {"gone": 1}}}, {"config": 3}],
)
def test_settings_that_cannot_be_read_are_none(values):
    assert settings_of(values) is None


def test_changes_are_undone_from_the_last_to_the_first(small):
    events: list[dict[str, Any]] = [
        {"event": "resumed", "step": 3, "changed": {"train.lr": [1.0, 2.0]}},
        {"event": "resumed", "step": 5, "changed": {"train.lr": [2.0, 3.0], "gone.away": [1, 2]}},
        {"event": "cv", "step": 6},
        {"event": "resumed", "step": 7, "changed": {"observe.cv.threshold": [0.5, 0.6]}},
        {"event": "resumed", "step": 8, "changed": "nothing"},
    ]
    latest = with_train(small, lr=3.0)
    assert asdict(undone(latest, [*events[:1], *events[2:]], 4))["train"]["lr"] == 3.0
    assert undone(latest, events[2:], 7).observe.cv.threshold == 0.5
    assert undone(with_train(small, lr=2.0), events[:1], 3).train.lr == 1.0
    assert undone(latest, events, 1) == latest  # a setting of that time is gone
