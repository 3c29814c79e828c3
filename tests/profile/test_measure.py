"""Tests of measuring a real step and cutting it into pieces."""

from dataclasses import replace

import pytest
import torch

from moebius.profile.measure import WATCHED, launch_seconds, measure, without_slowdown
from moebius.profile.timeline import Piece

CPU = torch.device("cpu")


def test_the_pieces_are_the_step(small):
    model = replace(small.model, base_expansion=1.0, use_mtp=True, dim=128)
    config = replace(small, model=model, train=replace(small.train, batch_size=16, seq_len=128))
    measured, steps = measure(config, CPU, seconds=3.0)
    assert len(measured.rounds) >= 3
    # a busy machine may take longer in one of the two; a GPU does not (docs/log/profiling.md)
    assert measured.covered == pytest.approx(1, abs=0.25)
    components = {piece.component for piece in measured.pieces}
    in_both_directions = {"attention_core", "router", "base_mlp", "mtp", "lm_head"}
    assert in_both_directions | {"embedding", "optimizer", "data"} <= components
    assert all(measured.of(name, "forward") > 0 for name in components)
    assert all(measured.of(name, "backward") > 0 for name in in_both_directions)
    assert measured.experts_per_token == [1.0, 1.0, 3.0]
    assert steps.state.sequences == 16 * steps.state.step > 48


def test_experts_of_the_grouped_backend_are_cut_into_components(small):
    config = replace(small, parallel=replace(small.parallel, expert_backend="grouped"))
    measured, steps = measure(config, CPU, seconds=0.5)
    assert steps.backends.experts == "grouped"
    assert measured.of("dispatch") > 0 and measured.of("combine") > 0


def test_waiting_for_a_slowed_host_is_taken_back():
    pieces = {
        Piece("router", "forward"): 3.0,
        Piece("router", "waiting"): 4.0,
        Piece("data", "waiting"): 1.0,
    }
    assert without_slowdown(pieces, 5.0) == {
        Piece("router", "forward"): 3.0,
        Piece("router", "waiting"): 1.6,
        Piece("data", "waiting"): 0.4,
    }


def test_only_waiting_is_shortened_and_only_as_far_as_the_step_is():
    pieces = {Piece("router", "forward"): 3.0, Piece("router", "waiting"): 5.0}
    assert without_slowdown(pieces, 9.0) == pieces
    assert sum(without_slowdown(pieces, 2.0).values()) == 3.0
    without_waiting = {Piece("router", "forward"): 3.0}
    assert without_slowdown(without_waiting, 2.0) == without_waiting


def test_launching_is_without_what_watching_adds():
    bound_by_the_device = launch_seconds(1.2 * WATCHED, slowdown=1.0, seconds=2.0)
    assert bound_by_the_device == pytest.approx(1.2)
    bound_by_the_host = launch_seconds(3.0, slowdown=1.5, seconds=2.0)
    assert bound_by_the_host == pytest.approx(2.0)


def test_launching_never_takes_longer_than_the_step():
    assert launch_seconds(5.0, slowdown=1.0, seconds=2.0) == 2.0
