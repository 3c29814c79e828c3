"""Tests of the tables, and of whether the founding document is quoted correctly."""

import sys
from dataclasses import replace

import pytest
import torch

from tests.bench.conftest import BENCH


def test_a_layer_that_failed_is_a_row_that_says_so(script):
    timed, layer = script("interleaved").Timed, script("founding_layers").Layer
    failed, fits = timed([], error="out of memory"), timed([0.002])
    times = {"large": layer(failed, failed), "fits": layer(fits, fits)}
    rows = list(script("founding_tables").layer_table("", times, "fits"))
    assert rows[2].startswith("| large | out of memory |  |")
    assert rows[3].startswith("| fits | 2.00 | 1.00 (1.00 to 1.00) |")


def test_the_tables_of_layers(script, capsys, monkeypatch):
    tables = ("gqa", "experts", "indexing", "padding")
    arguments = ["founding_tables.py", "--device", "cpu", "--only", *tables]
    monkeypatch.setattr(sys, "argv", arguments)
    script("founding_tables").main()
    out = capsys.readouterr().out
    assert f"torch {torch.__version__}" in out
    for row in (
        "| repeat_interleave, eager |",
        "| token by token,",
        "| loop, one GEMM per expert |",
        "| x[mask] |",
        "| 32,768 |",
    ):
        assert row in out
    assert "Error" not in out


def test_what_a_run_has_learned(script, small):
    config = replace(small, train=replace(small.train, steps=6, device="cpu"))
    shares, variation, bits = script("founding_tables").learned(config)
    assert len(shares.split()) == 3
    assert sum(map(float, shares.split())) == pytest.approx(100, abs=0.2)
    assert 0 <= float(variation) < 2**0.5 and 0 < float(bits) < 9


def test_the_document_is_quoted_as_it_is(script):
    document = script("founding_quotes")
    text = (BENCH.parent / "docs" / "founding.md").read_text()
    quoted = [f"{value}ms" for value in document.MS.values()]
    quoted += [f"CV: {document.CV}", document.GOAL.removeprefix("< ")]
    quoted += [share + "%" for share in document.LOADS.split()]
    quoted += [figure for figures in document.SPEED.values() for figure in figures]
    assert all(figure in text for figure in quoted)


def test_every_quoted_configuration_is_measured(script):
    models, document = script("founding_models"), script("founding_quotes")
    assert set(models.SUMMARY | models.RECOMMENDED) == set(document.SPEED)
