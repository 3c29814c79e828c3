"""A real step, measured and cut."""

import json
from dataclasses import replace

import pytest
import torch

from moebius.cli import main
from moebius.data import prepare
from moebius.model.experts import grouped
from moebius.profile.findings import Finding, findings
from moebius.profile.measure import WATCHED, _launching, _without_slowdown, load_text, measure
from moebius.profile.profile import profile, verify
from moebius.profile.timeline import Piece

CPU = torch.device("cpu")


def test_the_pieces_are_the_step(small):
    model = replace(small.model, base_expansion=1.0, use_mtp=True, dim=128)
    config = replace(small, model=model, train=replace(small.train, batch_size=16, seq_len=128))
    measured, steps = measure(config, CPU, seconds=3.0)
    assert len(measured.rounds) >= 3
    assert measured.covered == pytest.approx(1, abs=0.25)  # seconds of a busy machine: the bound is the device's, docs/log.md
    components = {piece.component for piece in measured.pieces}
    assert {"embedding", "attention_core", "router", "base_mlp", "mtp", "lm_head", "optimizer", "data"} <= components
    assert all(measured.of(name, "forward") > 0 for name in components)
    assert all(measured.of(name, "backward") > 0 for name in ("attention_core", "router", "base_mlp", "mtp", "lm_head"))
    assert measured.experts_per_token == [1.0, 1.0, 3.0]
    assert steps.state.step == steps.state.batch > 3


def test_waiting_for_a_slowed_host_is_taken_back():
    pieces = {Piece("router", "forward"): 3.0, Piece("router", "waiting"): 4.0, Piece("data", "waiting"): 1.0}
    found = _without_slowdown(pieces, 5.0)
    assert found == {Piece("router", "forward"): 3.0, Piece("router", "waiting"): 1.6, Piece("data", "waiting"): 0.4}
    assert _without_slowdown(pieces, 9.0) == pieces  # a step that was no slower
    assert sum(_without_slowdown(pieces, 2.0).values()) == 3.0  # what ran is never made shorter
    only = {Piece("router", "forward"): 3.0}
    assert _without_slowdown(only, 2.0) == only  # a CPU's


def test_launching_is_without_what_watching_adds_and_fits_the_step():
    assert _launching(1.2 * WATCHED, 1.0, 2.0) == pytest.approx(1.2)  # of a step that the device bounds
    assert _launching(3.0, 1.5, 2.0) == pytest.approx(2.0)  # that the host bounds: slower by as much
    assert _launching(5.0, 1.0, 2.0) == 2.0


def test_text_is_the_run_s_own_where_it_is_prepared(small):
    batches, end_of_text, text = load_text(small)
    assert text.startswith("random")
    assert batches.at(0).max() < small.model.vocab_size
    corpus = prepare(small.data, small.model.vocab_size)
    batches, end_of_text, text = load_text(small)
    assert text == small.data.source and end_of_text == corpus.tokenizer.end_of_text


def test_a_change_is_made_and_measured(small):
    found, steps = profile(replace(small, model=replace(small.model, base_expansion=16.0)), CPU, seconds=1.0)
    base = next(each for each in findings(found, steps) if each.title == "an always-on base MLP")
    verified = verify(steps, base, rounds=3)
    assert len(verified.before) == len(verified.after) == 3
    assert sum(verified.after) < sum(verified.before)
    assert "predicted" in str(verified) and "measured" in str(verified)


def test_a_larger_batch_is_measured_at_equal_tokens(small):
    _, steps = profile(small, CPU, seconds=0.5)
    verified = verify(steps, Finding("", "", ("--train.batch_size=16",), 1.0), rounds=3)
    assert sum(verified.after) < 2 * sum(verified.before)  # four times, if it were not divided


def test_experts_of_the_grouped_backend(small):
    config = replace(small, parallel=replace(small.parallel, expert_backend="grouped"))
    measured, steps = measure(config, CPU, seconds=0.5)
    assert steps.backends.run_experts is grouped
    assert measured.of("dispatch") > 0 and measured.of("combine") > 0


def run(*arguments: str) -> int | str | None:
    with pytest.raises(SystemExit) as stopped:
        main(["profile", "tiny", *arguments])
    return stopped.value.code


def test_the_command(small, tmp_path, capsys):
    flags = [f"--data.cache={small.data.cache}", f"--data.source={small.data.source}", "--train.batch_size=2"]
    flags += ["--train.seq_len=32", "--model.num_layers=1", "--model.dim=32", "--model.num_heads=2", "--model.num_kv_heads=1"]
    flags += ["--model.base_expansion=64", "--model.router_top_k=1", "--seconds=0.2"]
    picture = tmp_path / "chart.png"
    assert run(*flags, "--json", "--verify", "--chart", str(picture), "--html", str(tmp_path / "page.html")) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["covered"] > 0.5 and values["components"] and picture.exists()
    assert values["verified"][0]["finding"] == values["findings"][0]["title"]
    assert run(*flags, "--verify") == 0
    printed = capsys.readouterr().out
    assert "covered    the components add up to" in printed and "findings" in printed and "verified" in printed


@pytest.mark.parametrize(
    ("flags", "code", "says"),
    [
        (["--seconds", "soon"], 2, "--seconds"),
        (["--seconds", "0"], 2, "--seconds"),
        (["--verify", "-1"], 2, "--verify"),
        (["--model.dims", "3"], 2, "--model.dim"),
        (["--chart", "/nowhere/at/all.png"], 6, "/nowhere/at"),
        (["--chart", "chart.xyz"], 2, ".png"),
        (["--html", "page"], 2, ".html"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_measured(flags, code, says, capsys):
    assert run(*flags) == code
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and says in error
