"""A resumed run reads the text that it would have read, and notices what has changed."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moebius.config import Config
from moebius.data.sealed import read_sealed
from moebius.errors import CheckpointError, ConfigError, DataError, StorageError
from moebius.observe.line_file import read_lines
from moebius.train import checkpoint_store
from moebius.train.run_directory import RunDirectory
from moebius.train.session import Session, resume, start
from moebius.train.state import model_tensors
from tests.train.runs import new_session, newest_tensors, silent, train, with_train


def with_data(config: Config, **changes: Any) -> Config:
    """Return the configuration with some of its data settings replaced."""
    return replace(config, data=replace(config.data, **changes))


def files_of(run: RunDirectory) -> dict[str, bytes]:
    """Return the contents of all files of a run by their names."""
    return {
        str(path.relative_to(run.root)): path.read_bytes()
        for path in sorted(run.root.rglob("*"))
        if path.is_file()
    }


def record_reads(session: Session, sequences: list[int]) -> None:
    """Append the number of every sequence that the session reads to the list."""
    batches = session.feed.batches
    read_batch = batches.at

    def at(first: int, *rank: int) -> np.ndarray:
        sequences.extend(range(first, first + batches.batch_size))
        return read_batch(first, *rank)

    batches.at = at  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    "sizes", [(4, 8), (4, 1, 7), pytest.param((8, 4, 2), marks=pytest.mark.heavy)]
)
def test_no_sequence_is_skipped_or_repeated_when_the_batch_size_changes(small, sizes):
    sequences: list[int] = []
    session = new_session(small, steps=5, batch_size=sizes[0])
    record_reads(session, sequences)
    train(session)
    for number, size in enumerate(sizes[1:], start=2):
        config = with_train(session.run.config(), batch_size=size, steps=5 * number)
        session = resume(config, session.run, silent)
        record_reads(session, sequences)
        train(session)
    assert sequences == list(range(5 * sum(sizes)))
    assert session.state.sequences == 5 * sum(sizes)
    assert session.state.tokens == 5 * sum(sizes) * small.train.seq_len


def test_a_change_is_announced_recorded_and_lasts(small):
    session = new_session(small, steps=6)
    train(session)
    before = session.run.config_path.read_text()
    longer = with_train(session.config, steps=9, lr=1e-3, keep_last=1)
    lines: list[str] = []
    resumed = resume(longer, session.run, lines.append)
    assert [line for line in lines if line.startswith("changed from step 7 on: ")] == [
        "changed from step 7 on: train.steps 6 -> 9",
        "changed from step 7 on: train.lr 0.003 -> 0.001",
        "changed from step 7 on: train.keep_last 3 -> 1",
    ]
    (jump,) = [line for line in lines if line.startswith("the learning rate jumps: ")]
    assert jump.endswith("would have had 0.0003") and "step 7 has 0.00" in jump
    train(resumed)
    assert session.run.config() == longer and before != session.run.config_path.read_text()
    (event,) = read_lines(session.run.events_path)
    assert (event["event"], event["step"]) == ("resumed", 6)
    assert event["changed"] == {
        "train.steps": [6, 9],
        "train.lr": [0.003, 0.001],
        "train.keep_last": [3, 1],
    }
    assert event["lr"][0] == pytest.approx(3e-4)
    again: list[str] = []
    assert resume(session.run.config(), session.run, again.append).resumed is None
    assert not any("changed" in line or "jumps" in line for line in again)


def test_an_unchanged_resume_writes_no_event_and_leaves_the_configuration(small):
    session = new_session(small)
    config, record = session.run.config_path.read_bytes(), session.run.record_path.read_bytes()
    train(resume(small, session.run, silent))
    assert session.run.config_path.read_bytes() == config
    assert session.run.record_path.read_bytes() == record
    assert not session.run.events_path.read_text()


def test_an_edited_configuration_counts_as_a_change(small):
    session = new_session(small)
    text = session.run.config_path.read_text()
    session.run.config_path.write_text(text.replace("seed = 0", "seed = 1"))
    with pytest.raises(ConfigError, match=r"train\.seed=1: a resumed run keeps train\.seed=0"):
        resume(session.run.config(), session.run, silent)
    session.run.config_path.write_text(text.replace("log_every = 1", "log_every = 2"))
    lines: list[str] = []
    train(resume(session.run.config(), session.run, lines.append))
    assert "changed from step 1 on: train.log_every 1 -> 2" in lines
    assert read_lines(session.run.events_path)[0]["changed"] == {"train.log_every": [1, 2]}


def test_a_change_of_which_only_the_configuration_was_written_is_reported_again(small):
    """The process is killed after it has written config.toml."""
    session = new_session(small)
    changed = with_train(small, grad_clip=2.0)
    resume(changed, session.run, silent)
    resumed = resume(session.run.config(), session.run, silent)
    assert resumed.resumed and resumed.resumed.changed == {"train.grad_clip": (1.0, 2.0)}


@pytest.mark.parametrize("changes", [{"seed": 3}, {"seq_len": 16}, {"optimizer": "muon"}])
def test_what_a_run_keeps_is_refused_before_anything_is_written(small, changes):
    session = new_session(small)
    train(session)
    before = files_of(session.run)
    with pytest.raises(ConfigError, match="a resumed run keeps"):
        resume(with_train(small, **changes), session.run, silent)
    assert files_of(session.run) == before


def test_fewer_steps_than_the_run_has_made_are_refused(small):
    session = new_session(small)
    train(session)
    with pytest.raises(ConfigError, match=r"train\.steps=7: the run is at step 12 already"):
        resume(with_train(small, steps=7), session.run, silent)
    assert session.run.config().train.steps == 12


def test_a_run_goes_on_after_it_and_its_text_were_moved(small, tmp_path: Path):
    session = new_session(small, steps=5)
    train(session)
    run = RunDirectory(session.run.root.rename(tmp_path / "moved"))
    text = Path(small.data.source).rename(tmp_path / "elsewhere.txt")
    shutil.rmtree(small.data.cache)
    with pytest.raises(DataError, match="no such file"):
        resume(with_train(run.config(), steps=8), run, silent)
    config = with_data(with_train(run.config(), steps=8), source=str(text))
    resumed = resume(config, run, silent)
    train(resumed)
    assert run.config().data.source == str(text)
    assert "data.source" in read_lines(run.events_path)[0]["changed"]
    assert resume(run.config(), run, silent).resumed is None


def test_another_text_in_its_place_is_refused(small, tmp_path: Path):
    session = new_session(small)
    before = files_of(session.run)
    other = tmp_path / "other.txt"
    other.write_text(Path(small.data.source).read_text() + "one more line\n")
    with pytest.raises(CheckpointError, match=r"run: trained on another text than data\.source="):
        resume(with_data(small, source=str(other)), session.run, silent)
    assert files_of(session.run) == before


@pytest.mark.parametrize("is_cache_moved", [True, pytest.param(False, marks=pytest.mark.heavy)])
@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"])
def test_a_run_goes_on_without_its_text(small, tokenizer, is_cache_moved, tmp_path: Path):
    model = replace(small.model, vocab_size=300)
    config = with_data(replace(small, model=model), tokenizer=tokenizer)
    whole = new_session(config, name="whole")
    train(whole)
    session = new_session(config, steps=5)
    train(session)
    Path(small.data.source).unlink()
    config = with_train(session.run.config(), steps=12)
    if is_cache_moved:
        Path(small.data.cache).rename(tmp_path / "other cache")
        config = with_data(config, cache=str(tmp_path / "other cache"))
    lines: list[str] = []
    resumed = resume(config, session.run, lines.append)
    assert sum("the run goes on with its text as it was prepared" in line for line in lines) == 1
    assert resumed.corpus.identity == whole.corpus.identity
    train(resumed)
    assert resumed.state.sequences == whole.state.sequences


def test_a_wrong_place_for_the_text_is_an_error_although_the_text_is_prepared(small):
    session = new_session(small)
    with pytest.raises(DataError, match="no such file"):
        resume(with_data(small, source="gone.txt"), session.run, silent)


@pytest.mark.parametrize(("kind", "part"), [("gone", "deleted"), ("other", "has changed since")])
def test_a_tokenizer_that_is_not_the_run_s_is_not_taken_for_a_changed_text(small, kind, part):
    session = new_session(small)
    path = session.run.tokenizer_path
    text = path.read_text()
    path.unlink() if kind == "gone" else path.write_text(text + "\n")
    match = rf"tokenizer\.json: the run's tokenizer .*{part}.*restore it, for example from (.*)$"
    with pytest.raises(DataError, match=match) as refusal:
        resume(small, session.run, silent)
    copy = Path(str(refusal.value).rpartition(" from ")[2])
    assert copy.read_text() == text
    shutil.copy(copy, path)
    resume(small, session.run, silent)


def test_a_run_of_an_earlier_version_gets_its_record(small):
    session = new_session(small, steps=5)
    train(session)
    record = read_sealed(session.run.record_path)
    session.run.record_path.unlink()
    for folder in checkpoint_store.complete(session.run.checkpoints):
        assert "sequences" in json.loads((folder / "state.json").read_text())
    resumed = resume(with_train(session.config, steps=7), session.run, silent)
    assert resumed.resumed and set(resumed.resumed.changed) == {"train.steps"}
    train(resumed)
    record["config"]["train"]["steps"] = 7
    assert read_sealed(session.run.record_path) == record


def test_an_altered_record_is_no_record(small):
    session = new_session(small, steps=5)
    train(session)
    text = session.run.record_path.read_text()
    session.run.record_path.write_text(text.replace('"lr": 0.0', '"lr": 0.1', 1))
    assert session.run.record_path.read_text() != text
    lines: list[str] = []
    resumed = resume(with_train(session.config, steps=7), session.run, lines.append)
    assert resumed.resumed and set(resumed.resumed.changed) == {"train.steps"}
    assert any("run.json: damaged" in line for line in lines)


def test_an_older_checkpoint_is_taken_and_newer_ones_are_set_aside(small):
    config = with_train(small, checkpoint_every=3, keep_last=0)
    whole = start(config, "small", silent)
    train(whole)
    expected = newest_tensors(whole)
    metrics = whole.run.metrics_path.read_text().splitlines()
    checkpoints = files_of(whole.run)
    lines: list[str] = []
    resumed = resume(config, whole.run, lines.append, step=6)
    assert resumed.state.step == 6
    (aside,) = whole.run.root.glob("aside-*")
    assert f"what was written after step 6 is kept in {aside.name}/" in lines
    assert sorted(path.name for path in aside.iterdir()) == [
        "metrics.jsonl",
        "step-00000009",
        "step-00000012",
    ]
    for name in ("state.json", "model.safetensors"):
        kept = (aside / "step-00000009" / name).read_bytes()
        assert kept == checkpoints[f"checkpoints/step-00000009/{name}"]
    assert (aside / "metrics.jsonl").read_text().splitlines() == metrics[6:]
    names = [folder.name for folder in checkpoint_store.complete(whole.run.checkpoints)]
    assert names == ["step-00000006", "step-00000003"]
    train(resumed)
    (event,) = read_lines(whole.run.events_path)
    assert (event["step"], event["aside"], event["changed"]) == (6, aside.name, {})
    assert [line["step"] for line in read_lines(whole.run.metrics_path)] == list(range(1, 13))
    tensors = newest_tensors(resumed)
    assert all((expected[name] == tensors[name]).all() for name in expected)
    # A second time has a folder of its own, also within the same second.
    resume(config, whole.run, silent, step=3)
    assert len(list(whole.run.root.glob("aside-*"))) == 2


def test_a_step_without_a_checkpoint_lists_those_that_have_one(small):
    session = new_session(small)
    train(session)
    before = files_of(session.run)
    match = r"run: no checkpoint of step 7; there are those of steps 5, 10, 12$"
    with pytest.raises(CheckpointError, match=match) as refusal:
        resume(small, session.run, silent, step=7)
    assert refusal.value.exit_code == 4
    assert files_of(session.run) == before


def test_a_damaged_older_checkpoint_is_refused_and_nothing_is_moved(small):
    session = new_session(small)
    train(session)
    (session.run.checkpoints / "step-00000005" / "model.safetensors").write_bytes(b"no")
    before = files_of(session.run)
    with pytest.raises(CheckpointError, match="step-00000005"):
        resume(small, session.run, silent, step=5)
    assert files_of(session.run) == before


def test_a_place_that_cannot_be_written_is_found_before_the_text_is_read(small, tmp_path: Path):
    (tmp_path / "file").touch()
    config = with_data(with_train(small, out=str(tmp_path / "file" / "runs")), source="gone.txt")
    with pytest.raises(StorageError, match=r"choose another --train\.out"):
        start(config, "small", silent)


def test_weights_are_those_of_the_run_after_a_change(small):
    session = new_session(small, steps=5)
    train(session)
    resumed = resume(with_train(session.config, steps=8, batch_size=2), session.run, silent)
    expected = model_tensors(session.state.model)
    for name, tensor in model_tensors(resumed.state.model).items():
        assert (tensor == expected[name]).all()
