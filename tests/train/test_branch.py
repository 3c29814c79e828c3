"""A branch goes on from a checkpoint exactly as the run did, and leaves the run as it is."""

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from moebius.config import Config
from moebius.errors import CheckpointError, ConfigError, ForeignCheckpointError, StorageError
from moebius.observe.json_lines import read_lines, read_metrics
from moebius.train import checkpoint
from moebius.train.branch import branch
from moebius.train.origin import Origin
from moebius.train.run_directory import RunDirectory
from moebius.train.session import Session, resume
from tests.train.runs import new_session, newest_tensors, silent, train, with_train


@pytest.fixture
def trained(small: Config) -> Session:
    """A run of 12 steps that keeps its checkpoints of steps 5, 10 and 12."""
    session = new_session(small, keep_last=0)
    train(session)
    return session


def goes_on(run: RunDirectory) -> Session:
    """Train a branch to its end, and return its session."""
    session = resume(run.config(), run, silent)
    train(session)
    return session


def contents(run: RunDirectory) -> dict[Path, tuple[int, bytes]]:
    """Return the time and contents of each file of a run."""
    files = [path for path in run.root.rglob("*") if path.is_file()]
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def losses(run: RunDirectory) -> dict[int, float]:
    """Return the loss of each step that a run has logged."""
    return {metrics.step: metrics.loss for metrics in read_metrics(run.metrics_path)}


@pytest.mark.parametrize(
    ("optimizer", "micro_batch_size"),
    [
        ("adamw", 2),
        ("muon", 0),
        pytest.param("adamw", 0, marks=pytest.mark.heavy),
        pytest.param("muon", 2, marks=pytest.mark.heavy),
    ],
)
def test_a_branch_goes_on_with_the_same_bits(small, micro_batch_size, optimizer):
    settings = {"micro_batch_size": micro_batch_size, "optimizer": optimizer, "keep_last": 0}
    session = new_session(small, **settings)
    train(session)
    before = contents(session.run)
    run = branch(session.run, "branch", {}, 5, silent)
    assert run.root == session.run.root.parent / "branch"
    branched = goes_on(run)
    assert {step: loss for step, loss in losses(session.run).items() if step > 5} == losses(run)
    expected, own = newest_tensors(session), newest_tensors(branched)
    assert expected.keys() == own.keys()
    assert all(torch.equal(expected[name], own[name]) for name in own)
    assert contents(session.run) == before


def test_the_first_loss_is_the_runs_whatever_else_changes(trained):
    values: dict[str, Any] = {
        "train": {"lr": 1e-5, "steps": 30, "schedule": "wsd", "weight_decay": 0.0},
        "model": {"aux_loss_coeff": 0.5, "router_z_loss_coeff": 0.1},
        "observe": {"progress": False},
    }
    run = branch(trained.run, "branch", values, 10, silent)
    session = goes_on(run)
    assert losses(run)[11] == losses(trained.run)[11]
    assert losses(run)[12] != losses(trained.run)[12]
    assert session.config.model.aux_loss_coeff == 0.5 and session.config.train.lr == 1e-5


def test_the_origin_is_recorded_and_stays(trained):
    folder = trained.run.checkpoints / "step-00000005"
    run = branch(trained.run, "branch", {"train": {"lr": 1e-4}}, 5, silent)
    sha256 = hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    origin = Origin("branched", str(trained.run.root.absolute()), 5, sha256)
    for _ in range(2):
        record = run.record(pytest.fail)
        assert record and record.origin == origin
        (event,) = read_lines(run.events_path)
        assert event["event"] == "branched" and event["step"] == 5
        assert event["origin"]["sha256"] == sha256
        assert event["changed"] == {"train.lr": [3e-3, 1e-4]}
        goes_on(run)  # does not report the same change again
    assert (trained.run.record(pytest.fail) or pytest.fail()).origin is None


def test_a_branch_of_a_branch(trained):
    first = goes_on(branch(trained.run, "first", {}, 5, silent))
    second = branch(first.run, "second", {}, 10, silent)
    goes_on(second)
    assert losses(second) == {step: losses(trained.run)[step] for step in (11, 12)}
    record = second.record(pytest.fail)
    assert record and record.origin and record.origin.path == str(first.run.root.absolute())


def test_without_a_step_it_is_the_newest_intact_checkpoint(trained):
    (trained.run.checkpoints / "step-00000012" / "model.safetensors").write_bytes(b"no")
    lines: list[str] = []
    run = branch(trained.run, "branch", {}, None, lines.append)
    assert [path.name for path in run.checkpoints.iterdir()] == ["step-00000010"]
    assert any(line.startswith("passed over: ") for line in lines)
    assert (trained.run.checkpoints / "step-00000012").is_dir()  # the run is only read


@pytest.mark.heavy
def test_a_branch_has_the_settings_that_its_step_was_trained_with(small):
    session = new_session(small, steps=6, checkpoint_every=3, keep_last=0)
    train(session)
    train(resume(with_train(session.config, steps=12, lr=1e-3), session.run, silent))
    run = branch(session.run, "branch", {}, 3, silent)
    assert (run.config().train.steps, run.config().train.lr) == (6, 3e-3)
    goes_on(run)
    assert losses(run) == {step: losses(session.run)[step] for step in (4, 5, 6)}


@pytest.mark.parametrize(
    ("later", "values"),
    [
        ({"phases": ({"until": 1500},)}, {"steps": 8}),
        ({"steps": 8, "batch_size": 9, "micro_batch_size": 3}, {"steps": 8, "batch_size": 8}),
    ],
)
def test_settings_need_not_fit_those_that_the_run_has_later(small, later, values):
    session = new_session(small, steps=6, checkpoint_every=3, keep_last=0)
    train(session)
    train(resume(with_train(session.config, **later), session.run, silent))
    run = branch(session.run, "branch", {"train": values}, 3, silent)
    assert run.config().train.steps == 8 and not run.config().train.phases
    goes_on(run)


def test_a_checkpoint_of_a_version_that_counted_batches(trained):
    folder = trained.run.checkpoints / "step-00000005"
    tensors, values = checkpoint.load(folder)
    for name in ("config", "stretch", "sequences"):
        values.pop(name)
    checkpoint.write(folder, tensors, values | {"batch": 5})
    run = branch(trained.run, "branch", {}, 5, silent)
    goes_on(run)
    expected = losses(trained.run)
    assert losses(run) == {step: loss for step, loss in expected.items() if step > 5}


def test_a_branch_on_other_text_begins_at_its_start(small, trained, tmp_path):
    other = tmp_path / "cubes.txt"
    other.write_text("".join(f"line {n}: {n**3} is the cube of {n}\n" for n in range(3000)))
    lines: list[str] = []
    run = branch(trained.run, "branch", {"data": {"source": str(other)}}, 5, lines.append)
    assert "it begins at the start of its text, because the text or the seed differs" in lines
    session = resume(run.config(), run, silent)
    assert (session.state.step, session.state.sequences, session.state.tokens) == (5, 0, 5 * 128)
    train(session)
    assert len(losses(run)) == 7


@pytest.mark.parametrize(
    "values",
    [{"train": {"seed": 1}}, {"train": {"seq_len": 16}}, {"data": {"document_masking": False}}],
)
def test_a_branch_whose_text_is_read_differently(trained, values):
    run = branch(trained.run, "branch", values, 5, silent)
    session = resume(run.config(), run, silent)
    assert session.state.sequences == (0 if "seed" in values.get("train", {}) else 20)
    train(session)


def test_the_tokenizer_of_a_bpe_stays_with_other_text(small, tmp_path):
    config = replace(small, data=replace(small.data, tokenizer="bpe"))
    config = replace(config, model=replace(config.model, vocab_size=300))
    session = new_session(config, keep_last=0)
    train(session)
    same = branch(session.run, "same", {}, 5, silent)
    assert same.config().data.tokenizer == "bpe"
    other = tmp_path / "cubes.txt"
    other.write_text("".join(f"line {n}: {n**3} is the cube of {n}\n" for n in range(3000)))
    run = branch(session.run, "other", {"data": {"source": str(other)}}, 5, silent)
    assert run.tokenizer_path.read_bytes() == session.run.tokenizer_path.read_bytes()
    assert run.config().data.tokenizer == str(run.tokenizer_path.absolute())
    goes_on(run)
    with pytest.raises(ConfigError, match="gives another tokenizer than the run's"):
        branch(session.run, "bytes", {"data": {"tokenizer": "bytes"}}, 5, silent)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": {"dim": 64}}, "model.dim=64: a branch keeps model.dim=32, because the weights"),
        ({"train": {"optimizer": "muon"}}, "train.optimizer='muon': a branch keeps"),
        ({"train": {"steps": 5}}, "train.steps=5: the branch begins at step 5"),
        ({"train": {"lr": -1}}, "train.lr=-1.0: must be above 0"),
        ({"train": 3}, "train=3: must be a table of settings"),
        ({"trian": {"lr": 1}}, "unknown section 'trian'"),
    ],
)
def test_settings_that_are_refused_leave_nothing(trained, values, message):
    with pytest.raises(ConfigError, match=message):
        branch(trained.run, "branch", values, 5, silent)
    assert [path.name for path in trained.run.root.parent.iterdir()] == ["run"]


def test_a_name_that_is_taken_or_no_name(trained):
    before = contents(trained.run)
    with pytest.raises(ConfigError, match=r"exists; choose another --train.name"):
        branch(trained.run, "run", {}, 5, silent)
    with pytest.raises(ConfigError, match=r"train.name='\.\./out': must be 1 to 64 letters"):
        branch(trained.run, "../out", {}, 5, silent)
    assert contents(trained.run) == before


def test_a_checkpoint_that_is_not_there_or_damaged(trained):
    with pytest.raises(CheckpointError, match="no checkpoint of step 7; there are those of steps"):
        branch(trained.run, "branch", {}, 7, silent)
    for name in ("optimizer.safetensors", "state.json"):
        path = trained.run.checkpoints / "step-00000005" / name
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=f"{name}: altered since it was written"):
            branch(trained.run, "branch", {}, 5, silent)
    assert [path.name for path in trained.run.root.parent.iterdir()] == ["run"]


def test_a_checkpoint_of_another_run(small, trained):
    other = new_session(small, name="other", seed=3, keep_last=0)
    train(other)
    folder = trained.run.checkpoints / "step-00000005"
    checkpoint.remove(folder)
    (other.run.checkpoints / "step-00000005").rename(folder)
    with pytest.raises(ForeignCheckpointError, match=r"trained with train\.seed=3"):
        branch(trained.run, "branch", {}, 5, silent)


def test_a_disk_that_fails_leaves_no_branch(trained, monkeypatch):
    def full(*arguments: Any) -> None:
        raise StorageError("no space left")

    monkeypatch.setattr("moebius.train.branch.checkpoint.write", full)
    with pytest.raises(StorageError, match="no space left"):
        branch(trained.run, "branch", {}, 5, silent)
    assert [path.name for path in trained.run.root.parent.iterdir()] == ["run"]


def test_a_process_that_is_killed_leaves_no_branch(trained, monkeypatch):
    def killed(*arguments: Any) -> None:
        os._exit(9)

    monkeypatch.setattr("moebius.train.run_directory.RunDirectory._move", killed)
    child = os.fork()
    if child == 0:
        branch(trained.run, "branch", {}, 5, silent)
        os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code == 9
    monkeypatch.undo()
    assert not (trained.run.root.parent / "branch").exists()
    assert branch(trained.run, "branch", {}, 5, silent).config_path.is_file()


def test_the_files_of_the_two_runs_are_not_shared(trained):
    run = branch(trained.run, "branch", {}, 5, silent)
    name = "step-00000005"
    for path in (run.checkpoints / name).iterdir():
        assert path.stat().st_nlink == 1
    theirs, ours = (
        json.loads((checkpoints / name / "state.json").read_text())
        for checkpoints in (trained.run.checkpoints, run.checkpoints)
    )
    assert theirs.pop("config") != ours.pop("config")  # it has another name
    assert theirs.pop("stretch") is None and ours.pop("stretch")["first"] == 0
    assert theirs == ours


@pytest.mark.parametrize("step", [None, 12])
def test_the_checkpoint_is_read_once(trained, monkeypatch, step):
    """Besides what is read back after it was written anew."""
    read: list[Path] = []
    honest = checkpoint.read_verified

    def counted(path: Path, entry: Any) -> bytearray:
        read.append(path)
        return honest(path, entry)

    def unexpected(path: Path, entry: Any) -> None:
        assert trained.run.root not in path.parents, path

    monkeypatch.setattr(checkpoint, "read_verified", counted)
    monkeypatch.setattr(checkpoint, "verify_file", unexpected)
    branch(trained.run, "other", {"train": {"steps": 14}}, step, silent)
    assert read.count(trained.run.checkpoints / "step-00000012" / "model.safetensors") == 1
