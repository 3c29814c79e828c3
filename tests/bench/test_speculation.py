"""The comparison of decoding with and without drafts, on a run of a few steps."""

import sys
from dataclasses import replace

import pytest

from tests.train.runs import new_session, train


@pytest.fixture
def run(small):
    """The directory of a run whose model has multi-token prediction."""
    session = new_session(replace(small, model=replace(small.model, use_mtp=True)), eval_every=0)
    train(session)
    return session.run.root


def output(script, monkeypatch, capsys, run) -> list[str]:
    options = ["--prompts", "12", "--compared", "20", "--batch", "1,3", "--tokens", "6"]
    monkeypatch.setattr(sys, "argv", ["speculation.py", str(run), *options, "--rounds", "1"])
    capsys.readouterr()  # the lines of training
    script("speculation").main()
    return capsys.readouterr().out.splitlines()


def test_it_prints_equality_acceptance_and_speed(script, monkeypatch, capsys, run):
    lines = output(script, monkeypatch, capsys, run)
    assert "12 of 12 texts of 20 tokens are identical" in lines[1]
    rows = [line.split()[:2] for line in lines[-4:]]
    assert rows == [["1", "0"], ["1", "0.8"], ["3", "0"], ["3", "0.8"]]


def test_it_shows_texts_that_differ(script, monkeypatch, capsys, run):
    """A step that accepts every draft writes other texts."""
    from moebius.infer import cached

    honest = cached.verified

    def credulous(p_BSV, q_BOV, draft_BO, limit_B, uniform_BS):
        kept = honest(p_BSV, q_BOV, draft_BO, limit_B, uniform_BS)
        return kept._replace(accepted_B=limit_B)

    monkeypatch.setattr(cached, "verified", credulous)
    lines = output(script, monkeypatch, capsys, run)
    assert "12 of 12" not in lines[1]
    assert "the two likeliest tokens differ by" in lines[2]
