"""A run that is moved, deleted or unlocked while it is trained stops, and is not torn in two."""

import shutil
import time
from pathlib import Path

import pytest

from moebius.errors import LostRunError
from moebius.train import checkpoint, checkpoint_store
from moebius.train.run_directory import RunDirectory
from moebius.train.session import resume
from tests.train.checkpoints import names_in
from tests.train.runs import before_step, new_session, silent, train, with_train
from tests.train.test_ownership import lose

LOG_EVERY = [1, 100]
"""With the second, the writer of checkpoints is the first to notice."""


def wait_for(step: int, root: Path) -> None:
    """Wait until the checkpoint of that step is written and has been read back."""
    place = root / "checkpoints"
    while not (place / f"step-{step:08d}").exists() or list(place.glob(".step-*")):
        time.sleep(0.01)


@pytest.mark.parametrize("log_every", LOG_EVERY)
@pytest.mark.parametrize("is_replaced", [False, True])
def test_a_run_that_is_renamed_stops_and_goes_on_under_its_new_name(
    small, log_every, is_replaced, monkeypatch
):
    session = new_session(small, log_every=log_every, eval_every=0)
    root = session.run.root
    how = "replaced" if is_replaced else "moved"
    with monkeypatch.context() as patched:
        before_step(7, patched, lambda model: [wait_for(5, root), lose(root, how)])
        with pytest.raises(LostRunError, match=r"run: moved to \S+elsewhere during") as stop:
            train(session)
    notes = getattr(stop.value, "__notes__", [])
    assert set(notes) <= {str(stop.value)}  # nothing about a checkpoint in the old place
    assert not list(root.iterdir()) if is_replaced else not root.exists()
    moved = RunDirectory(root.with_name("elsewhere"))
    assert names_in(moved.checkpoints) == ["step-00000005"]
    assert checkpoint.verify(moved.checkpoints / "step-00000005")["step"] == 5
    resumed = resume(moved.config(), moved, silent)
    assert resumed.state.step == 5
    train(resumed)
    assert names_in(moved.checkpoints)[-1] == "step-00000012"


@pytest.mark.parametrize("log_every", LOG_EVERY)
def test_a_run_that_is_deleted_is_not_made_anew(small, log_every, monkeypatch):
    session = new_session(small, log_every=log_every, eval_every=0)
    root = session.run.root
    before_step(7, monkeypatch, lambda model: [wait_for(5, root), shutil.rmtree(root)])
    with pytest.raises(LostRunError, match="run: deleted during the training"):
        train(session)
    assert not session.run.root.exists()


@pytest.mark.parametrize("log_every", LOG_EVERY)
def test_a_run_whose_lock_is_deleted_leaves_everything_to_whoever_has_it_now(
    small, log_every, monkeypatch
):
    session = new_session(small, log_every=log_every, eval_every=0)
    before_step(
        7,
        monkeypatch,
        lambda model: [wait_for(5, session.run.root), lose(session.run.root, "unlocked")],
    )
    with pytest.raises(LostRunError, match=r"\.lock: deleted during the training"):
        train(session)
    assert names_in(session.run.checkpoints) == ["step-00000005"]


def test_a_checkpoint_that_is_written_while_the_run_is_renamed_says_so(small, monkeypatch):
    session = new_session(with_train(small, eval_every=0))
    write = checkpoint.write

    def renamed(folder: Path, *arguments: object) -> Path:
        if folder.name == "step-00000010":
            lose(session.run.root, "moved")
        return write(folder, *arguments)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(checkpoint, "write", renamed)
    with pytest.raises(LostRunError, match="run: moved to"):
        train(session)
    assert not session.run.root.exists()


def test_the_last_good_checkpoint_of_a_run_that_is_gone_is_not_said_to_be_none(tmp_path: Path):
    assert checkpoint_store.last_good(tmp_path / "gone" / "checkpoints") == (
        f"{tmp_path / 'gone'} is not there any more"
    )
