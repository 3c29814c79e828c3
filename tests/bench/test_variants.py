"""Tests of training variants, with a fake in place of the command that trains."""

import json
from pathlib import Path

import pytest

from tests.observe.made_up import metrics_of


def test_every_variant_is_trained_with_every_seed(script, monkeypatch):
    calls: list[list[str]] = []

    def fake(arguments: list[str], threads: int = 0) -> None:
        calls.append(arguments)
        if arguments[0] == "train":
            flags = dict(zip(arguments[-12::2], arguments[-11::2], strict=True))
            folder = Path(flags["--train.out"]) / flags["--train.name"]
            folder.mkdir(parents=True)
            line = metrics_of(step=1, val_loss=1.0, val_bpb=float(flags["--train.seed"])).to_json()
            (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")

    monkeypatch.setattr(script("variants"), "moebius", fake)
    variants = {"k = 1": ["--model.router_top_k=1"], "k = 2": ["--model.router_top_k=2"]}
    results = script("variants").train_all("tiny", variants, seeds=2, jobs=2)
    assert calls[0] == ["data", "tiny", "--model.router_top_k=1"]
    assert {name: len(runs) for name, runs in results.items()} == {"k = 1": 2, "k = 2": 2}
    assert [run[-1]["val_bpb"] for run in results["k = 2"]] == [0.0, 1.0]


def test_a_command_that_fails_ends_the_script_with_its_error(script):
    with pytest.raises(SystemExit) as stopped:
        script("variants").moebius(["trian"])
    assert "moebius trian\n" in str(stopped.value.code) and "train" in str(stopped.value.code)
