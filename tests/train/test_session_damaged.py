"""A run whose checkpoints are damaged goes on from the newest that loads, and no restart fails."""

import hashlib
import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from moebius.errors import CheckpointError, ForeignCheckpointError, Interrupted
from moebius.parallel.group import Peers
from moebius.parallel.process import Process
from moebius.train import checkpoint, checkpoint_store
from moebius.train.checkpoint_file import write_file
from moebius.train.session import Session, resume, start
from tests.train.checkpoints import lie, names_in, spoiled
from tests.train.runs import before_step, new_session, silent, train, with_train


def saved(session: Session, *steps: int) -> None:
    """Save the session's state as the checkpoints of several steps."""
    for step in steps:
        state = session.state
        state.step, state.sequences, state.tokens = step, 4 * step, step * 128
        with torch.no_grad():
            state.model.embedding.weight.fill_(step)
        checkpoint.save(session.run.checkpoints / f"step-{step:08d}", *state.captured())


def rewrite(folder: Path, name: str, data: bytes) -> None:
    """Replace a file, and its entry in the manifest, so that its hash is right."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] = write_file(folder / name, [data])
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))


def rewrite_state(folder: Path, change: Any) -> None:
    values = json.loads((folder / "state.json").read_text())
    rewrite(folder, "state.json", json.dumps(change(values)).encode())


def without(name: str) -> Any:
    return lambda values: {key: value for key, value in values.items() if key != name}


def with_value(name: str, value: Any) -> Any:
    return lambda values: values | {name: value}


CHANGES: dict[str, Any] = {
    "no step": without("step"),
    "no corpus": without("corpus"),
    "no alarms": without("alarms"),
    "a step that is text": with_value("step", "9"),
    "a fraction of a token": with_value("tokens", 0.5),
    "levels of another model": with_value("aux_levels", [0, 0, 0]),
    "alarms in words": with_value("alarms", "none"),
    "an alarm without its step": with_value(
        "alarms", {"seen": [], "fine_at": [["cv", 0, -1]], "beyond_at": []}
    ),
    "another step than the folder's": with_value("step", 3),
    "a list": lambda values: list(values.items()),
    "nothing": lambda values: None,
    "other keys": lambda values: {"epoch": 1},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_state_with_the_right_hash_and_wrong_values_is_passed_over(small, change):
    session = new_session(small)
    saved(session, 3, 6)
    rewrite_state(session.run.checkpoints / "step-00000006", change)
    folder = session.run.checkpoints / "step-00000006"
    checkpoint._verify(folder, checkpoint._manifest(folder))
    lines: list[str] = []
    resumed = resume(small, session.run, lines.append)
    assert (resumed.state.step, resumed.state.sequences, resumed.state.tokens) == (3, 12, 384)
    passed_over = [line for line in lines if line.startswith("passed over: ")]
    assert len(passed_over) == 1 and "step-00000006/state.json: " in passed_over[0]
    assert names_in(session.run.checkpoints) == ["step-00000003", "step-00000006.damaged"]


def without_group(name: str) -> Any:
    def change(folder: Path) -> None:
        (folder / f"{name}.safetensors").unlink()
        manifest = json.loads((folder / "manifest.json").read_text())
        del manifest["files"][f"{name}.safetensors"]
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))

    return change


def of_no_generator(folder: Path) -> None:
    write = checkpoint._write_tensors
    manifest = json.loads((folder / "manifest.json").read_text())
    entry = write(folder / "random.safetensors", {"cpu": torch.zeros(3, dtype=torch.uint8)})
    manifest["files"]["random.safetensors"] = entry
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))


@pytest.mark.parametrize(
    "change",
    [without_group("model"), without_group("optimizer"), without_group("random"), of_no_generator],
    ids=["no weights", "no optimizer", "no generators", "no state of a generator"],
)
def test_no_part_of_a_checkpoint_that_is_refused_is_loaded(small, change):
    session = new_session(small)
    saved(session, 6)
    change(session.run.checkpoints / "step-00000006")
    saved(session, 1)
    torch.manual_seed(5)
    before = checkpoint.snapshot(session.state.captured()[0])
    with pytest.raises(CheckpointError):
        session.state.load(session.run.checkpoints / "step-00000006")
    after, values = session.state.captured()
    assert values["step"] == 1
    for group, named in before.items():
        assert all(torch.equal(after[group][name], tensor) for name, tensor in named.items())


def test_a_checkpoint_of_another_optimizer_is_an_error_and_nothing_of_it_is_loaded(small):
    session = new_session(small)
    saved(session, 3, 6)
    other = new_session(small, name="other", optimizer="muon")
    before = other.state.model.embedding.weight.clone()
    with pytest.raises(ForeignCheckpointError, match="optimizer state: "):
        other.state.load(session.run.checkpoints / "step-00000006")
    assert torch.equal(other.state.model.embedding.weight, before)
    with pytest.raises(ForeignCheckpointError, match=r"own model and train\.optimizer"):
        checkpoint_store.load_newest(session.run.checkpoints, other.state.load, silent)
    assert names_in(session.run.checkpoints) == ["step-00000003", "step-00000006"]


def test_a_checkpoint_of_another_model_is_not_passed_over_for_an_older_one(small):
    session = new_session(small)
    saved(session, 3, 6)
    train_config = replace(small.train, name="larger")
    config = replace(small, model=replace(small.model, dim=64), train=train_config)
    larger = start(config, "small", silent)
    with pytest.raises(ForeignCheckpointError, match=r"step-00000006: .* the model's is"):
        checkpoint_store.load_newest(session.run.checkpoints, larger.state.load, silent)


def test_several_damaged_checkpoints_cost_one_restart(small):
    """Each is set aside at once, so that a later one never hides what was saved since."""
    config = with_train(small, keep_last=2, checkpoint_every=3)
    session = new_session(config)
    saved(session, 3, 6, 9, 12)
    for step, name in ((12, "state.json"), (9, "model.safetensors")):
        file = session.run.checkpoints / f"step-{step:08d}" / name
        file.write_bytes(bytes(file.stat().st_size))
    resumed = resume(config, session.run, silent)
    assert resumed.state.step == 6
    train(resumed)
    assert names_in(session.run.checkpoints) == [
        "step-00000009",
        "step-00000009.damaged",
        "step-00000012",
        "step-00000012.damaged",
    ]
    assert resume(config, session.run, silent).state.step == 12


@pytest.mark.parametrize("keep_last", [1, 2, 0])
def test_a_run_that_is_stopped_before_the_step_of_a_damaged_checkpoint_is_saved(
    small, monkeypatch, keep_last
):
    config = with_train(small, keep_last=keep_last, checkpoint_every=3)
    session = new_session(config)
    saved(session, 3, 6, 9)
    file = session.run.checkpoints / "step-00000009" / "optimizer.safetensors"
    file.write_bytes(spoiled(file.read_bytes(), "flip"))
    resumed = resume(config, session.run, silent)
    before_step(8, monkeypatch, lambda model: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted, match="stopped at step 8, state saved") as interruption:
        train(resumed)
    assert interruption.value.exit_code == 143
    again = resume(config, session.run, silent)
    assert again.state.step == 8
    steps = [
        checkpoint_store.step_of(f) for f in checkpoint_store.complete(session.run.checkpoints)
    ]
    assert steps == [8, 6, 3][: keep_last or 3]


def test_only_the_process_that_writes_sets_checkpoints_aside(small):
    session = new_session(small)
    saved(session, 3, 6)
    (session.run.checkpoints / "step-00000006" / "state.json").unlink()
    peer = Process(rank=1, world_size=2, local_rank=1)
    assert resume(small, session.run, silent, peers=Peers(peer)).state.step == 3
    assert names_in(session.run.checkpoints) == ["step-00000003", "step-00000006"]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("model.safetensors", "flip"),
        ("model.safetensors", "zeros"),
        ("optimizer.safetensors", "flip"),  # its second half is zeros before the first step
        ("random.safetensors", "nothing"),
        ("state.json", "flip"),
        ("state.json", "zeros"),
    ],
)
def test_what_the_disk_did_not_store_is_never_resumed(small, monkeypatch, name, how):
    """Even if the check of what was just written did not notice, the hash is of the memory."""
    session = new_session(small)
    saved(session, 3)
    with monkeypatch.context() as patched:
        lie(patched, name, how)
        patched.setattr(checkpoint, "_compare", lambda *_: None)
        saved(session, 6)
    damaged = session.run.checkpoints / "step-00000006"
    entries = json.loads((damaged / "manifest.json").read_text())["files"]
    assert entries[name]["sha256"] != hashlib.sha256((damaged / name).read_bytes()).hexdigest()
    assert resume(small, session.run, silent).state.step == 3
