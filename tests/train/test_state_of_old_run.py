"""A run of an earlier version of Moebius can still be read, and continues as it would have then.

old_run/ was written by Moebius at commit e1f3c95: 12 steps of a model with one layer, two experts
and tied embeddings, trained with Muon. Its checkpoint of step 8 was kept.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from moebius.model.transformer import seeded
from moebius.observe.json_lines import read_metrics
from moebius.train import checkpoint_store
from moebius.train.run_directory import RunDirectory
from moebius.train.state import TrainState
from moebius.train.step import train_step

RUN = RunDirectory(Path(__file__).parent / "old_run")
B, S, V = 4, 16, 257
LOSSES = [5.602400779724121, 5.547183513641357, 5.575447082519531]
"""Losses of the next three steps, as the version that wrote the run computed them on a CPU."""


def tokens_of(step: int) -> torch.Tensor:
    """Return a batch that does not depend on a random generator."""
    return (torch.arange(B * (S + 1)) * (31 + step) % V).reshape(B, S + 1)


def test_its_configuration_is_read_without_the_settings_that_are_gone():
    assert "capacity_drop" in RUN.config_path.read_text()
    config = RUN.config()
    assert (config.model.num_experts, config.model.vocab_size) == (2, V)
    assert (config.train.optimizer, config.train.batch_size, config.train.seq_len) == (
        "muon",
        B,
        S,
    )
    assert config.data.source == "text/words.txt"


def test_its_tokenizer_is_read():
    tokenizer = RUN.tokenizer()
    assert tokenizer.size == V
    assert tokenizer.decode(tokenizer.encode("grün")) == "grün"


def test_its_metrics_are_read():
    steps = read_metrics(RUN.metrics_path)
    assert [metrics.step for metrics in steps] == list(range(1, 9))
    assert all(sum(metrics.layers[0].tokens_per_expert) == B * S for metrics in steps)


@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_its_place_in_the_data_does_not_depend_on_the_size_of_the_next_batches(batch_size):
    """Its checkpoint counts batches of 4 sequences."""
    config = RUN.config()
    config = replace(config, train=replace(config.train, batch_size=batch_size))
    folder = checkpoint_store.latest(RUN.checkpoints, pytest.fail)
    corpus = json.loads((folder / "state.json").read_text())["corpus"]
    state = TrainState.new(seeded(1, config.model), config, corpus)
    state.load(folder)
    assert state.sequences == 32


def test_its_newest_checkpoint_goes_on_with_the_same_losses():
    config = RUN.config()
    folder = checkpoint_store.latest(RUN.checkpoints, pytest.fail)
    corpus = json.loads((folder / "state.json").read_text())["corpus"]
    state = TrainState.new(seeded(1, config.model), config, corpus)
    state.load(folder)
    assert (state.step, state.sequences, state.tokens) == (8, 8 * B, 8 * B * S)
    losses = [
        train_step(state, tokens_of(step), None, config.train).loss.item()
        for step in range(len(LOSSES))
    ]
    assert losses[0] == pytest.approx(LOSSES[0], rel=1e-6)
    # These depend on the state of the optimizers, and on the rounding errors of the updates.
    assert losses[1:] == pytest.approx(LOSSES[1:], rel=1e-5)
