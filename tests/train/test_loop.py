"""A whole run: what it writes, that it learns, and that stopping it changes nothing."""

import math
import os
import signal
from dataclasses import replace
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from moebius.cli.training import finished
from moebius.config.observe import Rule
from moebius.errors import Interrupted, NumericError
from moebius.observe.line_file import read_lines
from moebius.observe.tensorboard import FOLDER
from moebius.train import checkpoint, checkpoint_store, loop
from moebius.train.evaluate import Evaluation
from moebius.train.loop import is_due
from moebius.train.run_directory import RunDirectory
from moebius.train.session import Session, resume
from tests.train.runs import before_step, new_session, newest_tensors, silent, train, with_train

LAYER_FIGURES = (
    "tokens_per_expert",
    "cv",
    "max_violation",
    "dead_experts",
    "routing_entropy",
    "mean_gate",
    "dropped_share",
    "unrouted_share",
    "not_finite_logits",
    "router_grad_norm",
    "layer_balance_loss",
    "layer_z_loss",
)
FIGURES = (
    "step",
    "tokens",
    "loss",
    "lr",
    "grad_norm",
    "tokens_per_second",
    "mfu",
    "memory_gb",
    "balance_loss",
    "z_loss",
)
TIMING = {"tokens_per_second", "mfu", "memory_gb"}
TOKENS = 4 * 32
"""Number of tokens in a batch of the `small` configuration."""


def metrics_of(session: Session) -> list[dict[str, Any]]:
    return read_lines(session.run.metrics_path)


def without_timing(session: Session) -> list[dict[str, Any]]:
    """Return the metrics of a run that depend only on its seed, not on timing."""
    return [
        {name: value for name, value in line.items() if name not in TIMING}
        for line in metrics_of(session)
    ]


def test_the_loss_falls_and_every_figure_is_written(small):
    session = new_session(small, steps=60, log_every=5)
    evaluation = train(session)
    lines = metrics_of(session)
    assert [line["step"] for line in lines] == list(range(5, 61, 5))
    assert lines[-1]["loss"] < 0.6 * lines[0]["loss"]
    assert evaluation.loss == lines[-1]["val_loss"]
    assert evaluation.bits_per_byte == lines[-1]["val_bpb"]
    for line in lines:
        assert line.keys() >= {*FIGURES, *LAYER_FIGURES}
        assert line["tokens"] == line["step"] * TOKENS
        # With top-1 routing, each token counts once in each layer.
        assert [sum(counts) for counts in line["tokens_per_expert"]] == [TOKENS, TOKENS]
        assert all(len(line[name]) == 2 for name in LAYER_FIGURES)
        assert line["not_finite_logits"] == [0, 0]
        assert line["unrouted_share"] == line["dropped_share"] == [0.0, 0.0]
        assert all(0 < norm < line["grad_norm"] for norm in line["router_grad_norm"])
        assert all(0 < entropy <= 1 for entropy in line["routing_entropy"])
        assert all(1 / 3 <= gate <= 1 for gate in line["mean_gate"])
        assert line["balance_loss"] == pytest.approx(sum(line["layer_balance_loss"]) / 2)
        assert 0 < line["mfu"] < 1 and line["memory_gb"] > 0 and line["tokens_per_second"] > 0
    assert RunDirectory.open(str(session.run.root)).config() == session.config


VARIATIONS: dict[str, dict[str, dict[str, Any]]] = {
    "adamw": {"train": {"optimizer": "adamw"}},
    "muon, accumulation, common start": {
        "train": {"optimizer": "muon", "micro_batch_size": 2, "common_start": 0.6}
    },
    "sigmoid with MTP": {
        "model": {"router_type": "sigmoid", "base_expansion": 1.0, "use_mtp": True}
    },
    "switch with dropout": {"model": {"router_type": "switch", "expert_dropout": 0.3}},
    "bias and alarms that act": {
        "model": {
            "router_bias_rate": 0.01,
            "aux_loss_scope": "global_batch",
            "router_jitter": 0.1,
        },
        "train": {"micro_batch_size": 2},
        "observe": {
            "cv": Rule(threshold=0.2, window=3, patience=2, action="raise_aux"),
            "dead_expert": Rule(threshold=0.33, patience=1, action="revive"),
            "dominant_expert": Rule(threshold=0.34, patience=1, action="nudge_bias"),
        },
    },
}


def kill_an_expert(model: Any) -> None:
    """Keep all tokens from an expert, so that it is dead."""
    model.layers[0].moe.router.bias_E[1] = -10


IN_MAKE_TEST = ("adamw", "muon, accumulation, common start", "sigmoid with MTP")


@pytest.mark.parametrize(
    "variation",
    [
        pytest.param(name, marks=() if name in IN_MAKE_TEST else pytest.mark.heavy)
        for name in VARIATIONS
    ],
)
def test_a_resumed_run_is_the_uninterrupted_one_bit_by_bit(small, variation, monkeypatch):
    config = small
    for section, values in VARIATIONS[variation].items():
        config = replace(config, **{section: replace(getattr(config, section), **values)})
    if variation == "bias and alarms that act":
        for step in (4, 9):
            before_step(step, monkeypatch, kill_an_expert)
    whole = new_session(config, name="whole")
    train(whole)

    broken = new_session(config, name="broken")
    with monkeypatch.context() as patched:
        before_step(7, patched, lambda model: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted, match="step 7") as interruption:
            train(broken)
    assert interruption.value.exit_code == 128 + signal.SIGTERM

    torch.manual_seed(999)  # in a new process, the generator's state is arbitrary
    resumed = resume(broken.config, broken.run, silent)
    assert resumed.state.step == 7
    train(resumed)
    expected, tensors = newest_tensors(whole), newest_tensors(resumed)
    assert expected.keys() == tensors.keys()
    assert all(torch.equal(expected[name], tensors[name]) for name in expected)
    assert without_timing(whole) == without_timing(resumed)
    assert whole.run.events_path.read_text() == resumed.run.events_path.read_text()
    if variation == "bias and alarms that act":
        # Every action was taken both before and after the interruption.
        events = read_lines(whole.run.events_path)
        sides = {(event["action"], event["step"] > 7) for event in events}
        actions = ("raise_aux", "revive", "nudge_bias")
        assert sides >= {(action, side) for action in actions for side in (False, True)}


def stop_in_evaluation(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send SIGTERM to this process while a run evaluates for the n-th time."""
    evaluate, calls = loop.evaluate, iter(range(1, 100))

    def interrupted(*arguments: Any) -> Evaluation | None:
        if next(calls) == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*arguments)

    monkeypatch.setattr(loop, "evaluate", interrupted)


@pytest.mark.parametrize(
    ("number", "step"), [(1, 5), pytest.param(2, 10, marks=pytest.mark.heavy), (3, 12)]
)
@pytest.mark.parametrize("times", [1, pytest.param(2, marks=pytest.mark.heavy)])
def test_an_evaluation_that_a_signal_prevented_is_made_up_for(
    small, number, step, times, monkeypatch
):
    config = with_train(small, log_every=3)
    whole = new_session(config, name="whole")
    expected = train(whole)
    broken = new_session(config, name="broken")
    for attempt in range(times):
        with monkeypatch.context() as patched:
            stop_in_evaluation(number if attempt == 0 else 1, patched)
            with pytest.raises(Interrupted, match=f"stopped at step {step}"):
                train(broken)
        assert "val_loss" not in metrics_of(broken)[-1]
        broken = resume(broken.config, broken.run, silent)
    assert train(broken) == expected
    assert without_timing(whole) == without_timing(broken)
    board = EventAccumulator(str(broken.run.root / FOLDER))
    board.Reload()
    assert [scalar.step for scalar in board.Scalars("1_loss/val_loss")] == [5, 10, 12]
    assert [scalar.step for scalar in board.Scalars("1_loss/loss")] == [3, 5, 6, 9, 10, 12]


def test_an_evaluation_that_is_made_up_for_has_the_figures_of_each_source(
    small, tmp_path, monkeypatch
):
    other = tmp_path / "other.txt"
    other.write_text("".join(f"another line {n}\n" for n in range(4000)))
    data = replace(small.data, source=f"{small.data.source},{other}")
    session = new_session(with_train(replace(small, data=data), log_every=3))
    with monkeypatch.context() as patched:
        stop_in_evaluation(1, patched)
        with pytest.raises(Interrupted):
            train(session)
    train(resume(session.config, session.run, silent))
    evaluated = [line for line in metrics_of(session) if "val_loss" in line]
    assert [line["step"] for line in evaluated] == [5, 10, 12]
    assert all(len(line["val_by_source"]) == 2 for line in evaluated)


def test_resuming_uses_the_newest_intact_checkpoint_and_says_what_it_passed_over(small):
    session = new_session(small)
    train(session)
    newest = session.run.checkpoints / "step-00000012" / "model.safetensors"
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    lines: list[str] = []
    resumed = resume(session.config, session.run, lines.append)
    assert resumed.state.step == 10
    assert sum("passed over" in line and "step-00000012" in line for line in lines) == 1
    train(resumed)
    # The lines of the steps that were trained again are replaced.
    assert [line["step"] for line in metrics_of(resumed)] == list(range(1, 13))


def test_a_finished_run_can_be_made_longer(small):
    session = new_session(small)
    train(session)
    longer = resume(with_train(small, steps=15), session.run, silent)
    train(longer)
    assert [line["step"] for line in metrics_of(longer)] == list(range(1, 16))


def test_a_checkpoint_that_a_run_continues_from_is_not_written_again(small):
    """A process that is killed while it replaces a checkpoint would leave one less."""
    session = new_session(small)
    train(session)
    folder = checkpoint_store.complete(session.run.checkpoints)[0]
    written = folder.stat().st_ino
    train(resume(session.config, session.run, silent))
    assert checkpoint_store.complete(session.run.checkpoints)[0] == folder
    assert folder.stat().st_ino == written


def break_gradients_of(steps: set[int], session: Session) -> None:
    """Make the embedding's gradient NaN in these steps. Their loss stays finite."""
    session.state.model.embedding.weight.register_hook(
        lambda gradient: gradient * torch.nan if session.state.step + 1 in steps else gradient
    )


def test_too_many_broken_updates_end_the_run_and_the_last_checkpoint_is_good(small):
    session = new_session(small, log_every=100, eval_every=0, max_skipped=3)
    break_gradients_of(set(range(6, 13)), session)
    # The run notices when it logs or saves. It is a little late, but nothing is lost.
    match = "step 10: loss or gradient not finite 5 times in a row"
    with pytest.raises(NumericError, match=match) as refusal:
        train(session)
    assert refusal.value.exit_code == 5
    assert refusal.value.__notes__ == ["the last good checkpoint is step 5"]
    newest = checkpoint_store.latest(session.run.checkpoints, silent)
    assert newest.name == "step-00000005"
    assert all(tensor.isfinite().all() for tensor in checkpoint.load(newest)[0]["model"].values())


@pytest.mark.parametrize("optimizer", ["adamw", pytest.param("muon", marks=pytest.mark.heavy)])
def test_exactly_the_broken_updates_are_skipped(small, optimizer, monkeypatch):
    """The run equals one that never had the batches of the broken steps 3, 4 and 8."""
    config = with_train(
        replace(small, model=replace(small.model, router_bias_rate=0.01)),
        optimizer=optimizer,
        schedule="wsd",
        warmup_steps=0,
        decay_fraction=0.0,
    )
    broken = new_session(config, name="broken")
    break_gradients_of({3, 4, 8}, broken)
    train(broken)
    shorter = new_session(config, name="shorter", steps=9)
    good_batches = iter(4 * batch for batch in range(12) if batch + 1 not in {3, 4, 8})
    read_batch = shorter.feed.batches.at
    monkeypatch.setattr(shorter.feed.batches, "at", lambda *_: read_batch(next(good_batches)))
    train(shorter)
    expected, tensors = newest_tensors(shorter), newest_tensors(broken)
    differing = [name for name in expected if not torch.equal(expected[name], tensors[name])]
    assert differing == []
    skipped = [
        event for event in read_lines(broken.run.events_path) if event["event"] == "skipped"
    ]
    assert [(event["step"], event["sequences"], event["in_a_row"]) for event in skipped] == [
        (3, [8, 11], 1),
        (4, [12, 15], 2),
        (8, [28, 31], 1),
    ]


def test_weights_that_are_not_finite_are_never_saved(small):
    session = new_session(small, eval_every=0, max_skipped=100, log_every=100)
    with torch.no_grad():
        session.state.model.lm_head.weight[0, 0] = torch.nan
    with pytest.raises(NumericError, match="step 12: not saved: weights are not finite"):
        train(session)
    assert not list(session.run.checkpoints.glob("step-*"))


def test_accumulation_is_one_large_batch(small):
    # There is no balance loss, because it is computed for each micro-batch separately.
    config = replace(small, model=replace(small.model, aux_loss_coeff=0.0))
    together = new_session(config, steps=3, name="together")
    apart = new_session(config, steps=3, name="apart", micro_batch_size=1)
    train(together)
    train(apart)
    for expected, line in zip(metrics_of(together), metrics_of(apart), strict=True):
        assert line["loss"] == pytest.approx(expected["loss"], rel=1e-4)
        assert line["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-3)
        # No token is counted twice.
        assert line["tokens_per_expert"] == expected["tokens_per_expert"]


def test_a_seed_is_a_run(small):
    losses = [
        train(new_session(small, steps=2, name=f"run-{number}", seed=seed)).loss
        for number, seed in enumerate((1, 1, 2))
    ]
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize(
    ("step", "every", "due"), [(10, 5, True), (11, 5, False), (0, 5, True), (10, 0, False)]
)
def test_what_is_due_every_few_steps_is_due_at_multiples_and_zero_means_never(step, every, due):
    assert is_due(step, every) == due


def test_a_finished_run_whose_last_evaluation_was_not_a_number_is_finished(small, monkeypatch):
    """It is null in metrics.jsonl, which is not the same as a missing evaluation."""
    session = new_session(small)
    evaluate = loop.evaluate
    num_evaluations = 0

    def broken(*arguments: Any) -> Any:
        nonlocal num_evaluations
        num_evaluations += 1
        evaluation = evaluate(*arguments)
        assert evaluation is not None
        return evaluation._replace(loss=math.nan, bits_per_byte=math.nan)

    monkeypatch.setattr(loop, "evaluate", broken)
    train(session)
    assert metrics_of(session)[-1]["val_loss"] is None and num_evaluations == 3
    run = RunDirectory.open(str(session.run.root))
    assert loop.unevaluated_step(run, 12, 12 * 128, small.train, small.train) is None
    record = run.record(silent)
    assert record is not None
    line = finished(run, record, session.config)
    assert line is not None and "is finished: it is at step 12 of 12" in line
    before = run.metrics_path.read_text()
    resumed = resume(with_train(session.config, steps=13), run, silent)
    train(resumed)
    assert run.metrics_path.read_text().startswith(before)
    assert num_evaluations == 4
