"""Tests that the trials of the small run fail when they should."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from moebius.data.batches import Batches
from moebius.doctor.small_run import SmallRun
from moebius.doctor.trial import TrialFailed
from moebius.train import checkpoint, checkpoint_store
from tests.doctor.machines import CONFIG, CPU


@pytest.fixture(scope="module")
def small_run(tmp_path_factory) -> SmallRun:
    """A trained run, which tests must not change."""
    run = SmallRun(CONFIG, CPU, tmp_path_factory.mktemp("small"))
    run.learns()
    return run


def test_a_run_that_learns_nothing_fails(tmp_path, monkeypatch):
    monkeypatch.setattr("moebius.train.loop.learning_rate", lambda *_: 0.0)
    with pytest.raises(TrialFailed, match="it must fall by"):
        SmallRun(CONFIG, CPU, tmp_path).learns()


def of_another_seed(stream, seq_len, batch_size, seed, *others):
    """Return the batches of a run with a different seed."""
    return Batches(stream, seq_len, batch_size, seed + 1, *others)


@pytest.mark.parametrize(
    ("forgotten", "instead"),
    [
        ("moebius.train.state.load_model", lambda *_: None),
        ("moebius.train.state.load_named_state", lambda *_: None),
        ("moebius.train.checkpoint.set_random_state", lambda *_: None),
        ("moebius.train.course.Batches", of_another_seed),
    ],
    ids=["weights", "optimizer", "random generators", "order of the data"],
)
def test_a_resume_that_forgets_something_fails(small_run, monkeypatch, forgotten, instead):
    with monkeypatch.context() as patch, pytest.raises(TrialFailed, match="differs by"):
        patch.setattr(forgotten, instead)
        try:
            small_run.resumes()
        finally:
            shutil.rmtree(small_run.whole.root.with_name("resumed"))


def test_a_checkpoint_that_is_not_verified_fails(small_run, monkeypatch):
    def unverified(folder: Path, only: str = ""):
        for name in checkpoint._manifest(folder):
            yield name, bytearray((folder / name).read_bytes())

    monkeypatch.setattr(checkpoint, "verified_files", unverified)
    with pytest.raises(TrialFailed, match="went unnoticed"):
        small_run.notices_damage()
    shutil.rmtree(small_run.whole.root.with_name("damaged"))


def test_not_a_number_is_an_infinite_difference(small_run):
    run = small_run._copy("spoiled")
    newest = checkpoint_store.complete(run.checkpoints)[0]
    tensors, state = checkpoint.load(newest)
    tensors["model"]["norm.weight"].fill_(torch.nan)
    checkpoint.save(newest, tensors, state)
    assert small_run._difference("spoiled") == (float("inf"), "model norm.weight")


def test_batches_in_no_fixed_order_fail(small_run, monkeypatch):
    starts = Batches._starts
    unseeded = np.random.default_rng()
    monkeypatch.setattr(
        Batches, "_starts", lambda self, numbers: unseeded.permutation(starts(self, numbers))
    )
    with pytest.raises(TrialFailed, match="differs when"):
        small_run.repeats_its_data()
