"""A session, new or resumed, has everything that training needs."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from moebius.config import Config
from moebius.errors import CheckpointError, ConfigError, DataError
from moebius.model.transformer import routed_layers
from moebius.parallel.group import Peers
from moebius.parallel.process import Process
from moebius.train import checkpoint
from moebius.train.session import Session, batches_for, build, resume, start
from moebius.train.state import model_tensors
from tests.train.runs import new_session, silent, with_train

FIRST = Process(rank=0, world_size=2, local_rank=0)
SECOND = Process(rank=1, world_size=2, local_rank=1)


def with_masking(config: Config, is_masked: bool) -> Config:
    return replace(config, data=replace(config.data, document_masking=is_masked))


def save(session: Session, step: int = 0) -> Path:
    """Save the session's state as the checkpoint of a step."""
    session.state.step, session.state.sequences = step, 4 * step
    folder = session.run.checkpoints / f"step-{step:08d}"
    return checkpoint.save(folder, *session.state.captured())


def test_a_new_session_has_its_parts(small):
    lines: list[str] = []
    session = start(small, "small", lines.append)
    assert session.config is small
    assert session.run.root == Path(small.train.out) / "run"
    assert session.run.config() == small
    assert session.run.tokenizer().to_json() == session.corpus.tokenizer.to_json()
    assert session.process == Process()
    assert session.device == session.feed.device == torch.device("cpu")
    assert (session.state.step, session.state.corpus) == (0, session.corpus.identity)
    assert not session.run.checkpoints.exists()
    assert any(line.startswith("parameters ") for line in lines)


@pytest.mark.parametrize("is_masked", [True, False])
@pytest.mark.parametrize("is_resumed", [True, False])
def test_the_separator_keeps_documents_apart_where_attention_is_masked(
    small, is_masked, is_resumed
):
    config = with_masking(small, is_masked)
    session = start(config, "small", silent)
    if is_resumed:
        session = resume(config, session.run, silent)
    separator = session.corpus.tokenizer.end_of_text if is_masked else None
    assert session.feed.separator == session.corpus.separator == separator


def test_the_feed_of_two_processes_shares_the_batch(small):
    whole = start(small, "small", silent).feed.at(3)
    parts = []
    for process in (FIRST, SECOND):
        config = with_train(small, name=f"rank-{process.rank}")
        session = start(config, "small", silent, peers=Peers(process))
        assert session.process == process
        assert (session.feed.rank, session.feed.world_size) == (process.rank, 2)
        parts.append(session.feed.at(3))
    assert torch.equal(torch.cat(parts), whole)


def test_a_process_that_does_not_write_makes_no_run_directory(small):
    session = start(small, "small", silent, peers=Peers(SECOND))
    assert not session.run.root.exists()


def test_a_resumed_feed_is_that_of_its_process(small):
    session = new_session(small)
    resumed = resume(small, session.run, silent, peers=Peers(SECOND))
    assert (resumed.feed.rank, resumed.feed.world_size) == (1, 2)
    assert torch.equal(resumed.feed.at(5), session.feed.at(5)[2:])


def test_a_run_without_a_checkpoint_begins_again(small):
    session = start(small, "small", silent)
    lines: list[str] = []
    resumed = resume(small, session.run, lines.append)
    assert resumed.state.step == 0
    assert lines[-1] == f"resuming {session.run.root} at step 0 of 12"
    weights = model_tensors(session.state.model)
    for name, tensor in model_tensors(resumed.state.model).items():
        assert torch.equal(tensor, weights[name])


def test_a_resumed_session_has_the_newest_state(small):
    session = start(small, "small", silent)
    save(session, step=1)
    with torch.no_grad():
        session.state.model.embedding.weight.zero_()
    save(session, step=7)
    lines: list[str] = []
    resumed = resume(small, session.run, lines.append)
    assert (resumed.state.step, resumed.state.sequences) == (7, 28)
    assert not resumed.state.model.embedding.weight.any()
    assert lines[-1] == f"resuming {session.run.root} at step 7 of 12"


def test_only_the_process_that_writes_tidies_the_checkpoints(small):
    session = start(small, "small", silent)
    save(session)
    leftover = session.run.checkpoints / ".step-00000003.partial"
    leftover.mkdir()
    resume(small, session.run, silent, peers=Peers(SECOND))
    assert leftover.exists()
    resume(small, session.run, silent, peers=Peers(FIRST))
    assert not leftover.exists()


def test_another_tokenizer_is_refused(small):
    bytes_only = replace(small, model=replace(small.model, vocab_size=320))
    session = start(bytes_only, "small", silent)
    words = replace(bytes_only, data=replace(small.data, tokenizer="bpe"))
    match = "gives another tokenizer than the run's: its text has changed"
    with pytest.raises(ConfigError, match=match):
        resume(words, session.run, silent)


def test_a_run_does_not_go_on_with_another_text(small):
    text = Path(small.data.source)
    before = text.read_text()
    session = start(small, "small", silent)
    save(session, step=9)
    text.write_text(before.replace("square of 7", "square of 8"))
    assert resume(small, session.run, silent).corpus.identity == session.corpus.identity
    shutil.rmtree(session.corpus.folder)  # what was prepared is gone
    match = r"run: trained on another text than data\.source='.*squares\.txt' now gives"
    with pytest.raises(CheckpointError, match=match):
        resume(small, session.run, silent)
    text.write_text(before)
    assert resume(small, session.run, silent).state.step == 9


def test_the_sources_of_prepared_text_are_not_looked_at_when_a_run_is_resumed(small, monkeypatch):
    session = start(small, "small", silent)
    save(session, step=9)
    monkeypatch.setattr("moebius.train.resumption.prepare", None)
    monkeypatch.setattr("moebius.data.inventory.inventory", None)
    assert resume(small, session.run, silent).state.step == 9


def test_a_run_that_cannot_begin_leaves_no_directory(small):
    with pytest.raises(DataError, match="too few for one batch"):
        new_session(small, batch_size=4000)
    assert not Path(small.train.out).exists()


def test_a_batch_has_as_many_more_tokens_as_the_model_looks_ahead(small):
    corpus = start(small, "small", silent).corpus
    model = replace(small.model, use_mtp=True)
    assert batches_for(small, corpus).at(0).shape == (4, 32 + 1)
    assert batches_for(replace(small, model=model), corpus).at(0).shape == (4, 32 + 4)


@pytest.mark.parametrize(("common_start", "is_tied"), [(0.5, True), (0.0, False)])
def test_experts_start_as_copies_of_one_only_if_asked_to(small, common_start, is_tied):
    config = with_train(small, common_start=common_start)
    corpus = start(config, "small", silent).corpus
    state = build(config, corpus, torch.device("cpu"), silent)
    for layer in routed_layers(state.model):
        weight: Any = layer.experts.w_up_EDF
        assert torch.equal(weight, weight[:1].expand_as(weight)) == is_tied


def test_the_seed_decides_the_weights(small):
    corpus = start(small, "small", silent).corpus
    weights = [
        build(with_train(small, seed=seed), corpus, torch.device("cpu"), silent)
        .model.embedding.weight.detach()
        .clone()
        for seed in (1, 1, 2)
    ]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
