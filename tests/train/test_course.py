"""A run goes through its phases, and a resumed run continues there with the same bits."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moebius.config import Config
from moebius.config.fields import plain
from moebius.errors import DataError
from moebius.observe.json_lines import read_lines, read_metrics
from moebius.train import checkpoint
from moebius.train.branch import branch
from moebius.train.schedule import learning_rate
from moebius.train.session import Session, resume, start
from tests.train.runs import new_session, newest_tensors, silent, train, with_train

PHASES: tuple[dict[str, Any], ...] = (
    {"until": 300, "schedule": "linear"},  # 3 steps of 4 x 32
    {"until": 900, "batch_size": 8, "micro_batch_size": 4, "weights": (1, 0)},  # 3 of 8 x 32
    {"until": 1700, "seq_len": 64, "schedule": "cosine", "lr_fraction": 0.1, "weights": (1, 3)},
)


@pytest.fixture
def phased(small: Config, tmp_path: Path) -> Config:
    """A run of nine steps in three phases on two sources."""
    cubes = tmp_path / "cubes.txt"
    cubes.write_text("".join(f"line {n}: {n**3} is the cube of {n}\n" for n in range(3000)))
    data = replace(small.data, source=f"{small.data.source},{cubes}")
    config = replace(small, data=data)
    return with_train(config, phases=PHASES, checkpoint_every=1, keep_last=0)


def rows_read(session: Session) -> list[np.ndarray]:
    """Return a list to which each batch that the session reads is added from now on."""
    rows: list[np.ndarray] = []
    next_step = session.course.next_step

    def noted(state: Any) -> Any:
        plain_config, feed = next_step(state)
        rows.append(feed.at(state.sequences).numpy().copy())
        return plain_config, feed

    session.course.next_step = noted  # pyright: ignore[reportAttributeAccessIssue]
    return rows


def test_each_phase_has_its_batch_rate_and_tokens(phased):
    session = new_session(phased)
    rows = rows_read(session)
    train(session)
    assert [batch.shape for batch in rows] == [(4, 33)] * 3 + [(8, 33)] * 3 + [(4, 65)] * 3
    metrics = read_metrics(session.run.metrics_path)
    # a phase ends with the first step that reaches its tokens
    tokens = [128, 256, 384, 640, 896, 1152, 1408, 1664, 1920]
    assert [each.tokens for each in metrics] == tokens
    rates = [each.lr for each in metrics]
    assert rates[0] == pytest.approx(3e-3 * 128 / 300)
    assert rates[2:6] == [3e-3] * 4 and rates[-1] == pytest.approx(3e-4)
    assert session.state.step == metrics[-1].step


IN_MAKE_TEST = (2, 4)
"""A step of the first phase, and one of the second."""


@pytest.mark.parametrize(
    "step",
    [pytest.param(n, marks=() if n in IN_MAKE_TEST else pytest.mark.heavy) for n in range(1, 9)],
)
def test_a_resumed_run_continues_with_the_same_bits_in_any_phase(phased, step):
    whole = new_session(phased)
    train(whole)
    run = branch(whole.run, "again", {}, step, silent)  # a copy of the run as it was then
    resumed = resume(run.config(), run, silent)
    train(resumed)
    expected, own = newest_tensors(whole), newest_tensors(resumed)
    assert all(torch.equal(expected[name], own[name]) for name in expected)
    assert resumed.state.stretch == whole.state.stretch
    assert resumed.state.sequences == whole.state.sequences
    losses = {each.step: each.loss for each in read_metrics(whole.run.metrics_path)}
    theirs = {each.step: each.loss for each in read_metrics(run.metrics_path)}
    assert theirs == {number: loss for number, loss in losses.items() if number > step}


def test_a_run_that_is_finished_trains_a_further_phase(phased):
    session = new_session(phased, phases=PHASES[:2])
    train(session)
    more = with_train(session.config, phases=PHASES)
    lines: list[str] = []
    resumed = resume(more, session.run, lines.append)
    assert any(line.startswith("changed from step") and "train.phases" in line for line in lines)
    train(resumed)
    whole = start(with_train(phased, name="whole"), "small", silent)
    train(whole)
    expected, own = newest_tensors(whole), newest_tensors(resumed)
    assert all(torch.equal(expected[name], own[name]) for name in expected)
    (event,) = read_lines(session.run.events_path)
    assert event["changed"]["train.phases"] == [
        plain(session.config.train.phases),
        plain(more.train.phases),
    ]
    assert session.run.config() == more


def test_a_run_without_phases_goes_on_in_phases(phased):
    session = new_session(phased, phases=(), steps=5)
    train(session)
    phases = ({"until": 768}, {"until": 1500, "weights": (0, 1)})
    resumed = resume(with_train(session.config, phases=phases), session.run, silent)
    rows = rows_read(resumed)
    train(resumed)
    size = len(session.corpus.train) - session.corpus.train.parts[1].start
    assert len(rows) == 7 and size > 0
    assert resumed.state.stretch is not None and resumed.state.stretch.weights == (0, 1)
    assert resumed.state.stretch.taken == (12, 12) and resumed.state.stretch.first == 24


def test_no_text_is_read_twice_when_the_mixture_changes(phased):
    """Each source goes on where it was: in its first epoch no window comes again."""
    phases = (
        {"until": 640, "weights": (3, 1)},
        {"until": 1280, "weights": (1, 0)},
        {"until": 1920, "weights": (1, 5)},
    )
    session = new_session(phased, phases=phases, checkpoint_every=0)
    rows = rows_read(session)
    train(session)
    windows = [bytes(row) for batch in rows for row in batch]
    assert len(windows) == len(set(windows)) == 60
    first = session.corpus.train.parts[0].stop
    starts = session.state.stretch
    assert starts is not None and starts.taken == (15 + 20, 5) and first > 0


def test_the_course_without_phases_is_that_of_the_run(small):
    session = new_session(small, keep_last=0)
    feed = session.feed
    train(session)
    assert session.feed is feed and session.state.stretch is None
    values = checkpoint.read_state(session.run.checkpoints / "step-00000012")
    assert values["stretch"] is None


def test_a_checkpoint_without_a_stretch_is_that_of_a_run_without_phases(small):
    session = new_session(small)
    train(session)
    folder = session.run.checkpoints / "step-00000012"
    tensors, values = checkpoint.load(folder)
    del values["stretch"]
    checkpoint.save(folder, tensors, values)
    resumed = resume(with_train(session.config, steps=13), session.run, silent)
    assert resumed.state.step == 12 and resumed.state.stretch is None


@pytest.mark.parametrize(
    "stretch",
    [
        3,
        {"seq_len": 32},
        {"seq_len": 0, "weights": [1.0], "first": 0, "taken": []},
        {"seq_len": 32, "weights": [1.0, 1.0], "first": 0, "taken": []},
        {"seq_len": 32, "weights": [0.0], "first": 0, "taken": []},
        {"seq_len": 32, "weights": [1.0], "first": -1, "taken": []},
        {"seq_len": 32, "weights": [1.0], "first": 0, "taken": ["a"]},
    ],
)
def test_a_stretch_that_cannot_be_is_damage(small, stretch):
    session = new_session(small, checkpoint_every=0)
    train(session)
    folder = session.run.checkpoints / "step-00000012"
    tensors, values = checkpoint.load(folder)
    checkpoint.save(folder, tensors, values | {"stretch": stretch})
    with pytest.raises(Exception, match="stretch cannot be"):
        session.state.load(folder)


def test_text_that_is_too_short_for_a_later_phase_is_refused_at_the_start(phased):
    phases = ({"until": 300}, {"until": 600, "seq_len": 10**6})
    with pytest.raises(DataError, match="too few for one batch of 4 x 1000000"):
        new_session(phased, phases=phases)


def test_a_branch_anneals_on_another_mixture(phased):
    """The branch of a run without phases has the same first loss, and then its own phases."""
    session = new_session(phased, phases=(), steps=8)
    train(session)
    anneal = {
        "until": 128 * 10,
        "schedule": "linear",
        "lr_fraction": 0.1,
    }
    values = {"train": {"phases": [{"until": 128 * 5}, anneal]}}
    run = branch(session.run, "annealed", values, 4, silent)
    resumed = resume(run.config(), run, silent)
    train(resumed)
    losses = {each.step: each.loss for each in read_metrics(session.run.metrics_path)}
    theirs = read_metrics(run.metrics_path)
    assert (theirs[0].step, theirs[0].loss) == (5, losses[5])
    assert [each.step for each in theirs] == list(range(5, 11))
    assert theirs[-1].lr == pytest.approx(3e-4)


@pytest.mark.parametrize("values", [{"train": {"seq_len": 64}}, {"data": {"weights": [1, 4]}}])
def test_a_branch_that_mixes_or_cuts_anew_goes_on_in_each_source(phased, values):
    session = new_session(phased, phases=(), steps=8)
    train(session)
    run = branch(session.run, "other", values, 4, silent)
    resumed = resume(run.config(), run, silent)
    assert resumed.state.sequences == 16
    train(resumed)
    stretch = resumed.state.stretch
    assert stretch is not None and stretch.first == 16
    if "data" in values:
        assert stretch.taken == (8, 8) and stretch.weights == (1, 4)


def test_the_rate_of_a_phase_goes_from_the_one_before_to_its_own():
    config = Config().train
    config = replace(
        config,
        batch_size=1,
        seq_len=10,
        lr=1.0,
        phases=(
            {"until": 100, "schedule": "linear"},
            {"until": 200},
            {"until": 300, "schedule": "cosine", "lr_fraction": 0.5},
            {"until": 400, "schedule": "linear", "lr_fraction": 0.0},
        ),
    )
    rates = [learning_rate(0, config, tokens) for tokens in range(0, 400, 10)]
    assert rates[:10] == pytest.approx([n / 10 for n in range(1, 11)])
    assert rates[10:20] == [1.0] * 10
    assert rates[24] == pytest.approx(0.75) and rates[29] == pytest.approx(0.5)
    assert rates[20] > rates[21] > rates[28] > rates[29]
    assert rates[30:] == pytest.approx([0.5 - 0.05 * n for n in range(1, 11)])
    assert learning_rate(0, config, 10**6) == pytest.approx(0.0)
