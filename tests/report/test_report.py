"""Tests of whole reports, without a browser."""

import json
import random
import resource
import sys

import pytest

from moebius.errors import StorageError
from moebius.report.report import write_report
from tests.report.made_up_run import alarm, metrics_lines, write_run


def test_the_report_of_a_run_is_in_its_folder(tmp_path):
    folder = write_run(tmp_path / "run")
    path, (found,) = write_report([folder])
    assert path == folder / "report.html" and found.word == "Healthy"
    html = path.read_text("utf-8")
    assert "<h1>Run run</h1>" in html and "nothing has to be done" in html
    assert sorted(each.name for each in folder.iterdir()) == [
        "config.toml",
        "events.jsonl",
        "metrics.jsonl",
        "report.html",
    ]


def test_a_report_is_replaced(tmp_path):
    folder = write_run(tmp_path / "run")
    write_report([folder])
    (folder / "metrics.jsonl").write_text("")
    path, _ = write_report([folder])
    assert "Nothing to judge" in path.read_text("utf-8")


def test_several_runs_are_one_report(tmp_path, monkeypatch):
    folders = [write_run(tmp_path / "a"), write_run(tmp_path / "b", flags=["--train.lr=0.5"])]
    monkeypatch.chdir(tmp_path)
    path, verdicts = write_report(folders)
    assert path.resolve() == tmp_path / "report.html" and len(verdicts) == 2
    html = path.read_text("utf-8")
    assert html.index("train.lr") < html.index("Training and held-out loss")
    assert "<h1>Run a</h1>" in html and "<h1>Run b</h1>" in html


def test_a_report_that_cannot_be_written(tmp_path):
    folder = write_run(tmp_path / "run")
    with pytest.raises(StorageError, match="report"):
        write_report([folder], tmp_path / "nowhere" / "report.html")
    (folder / "report.html").mkdir()
    with pytest.raises(StorageError, match="report"):
        write_report([folder])
    assert not list(folder.glob(".report*"))


def damaged(text: bytes, seed: int) -> bytes:
    """Return a file's bytes after one of many kinds of damage."""
    chance = random.Random(seed)
    at = chance.randrange(len(text))
    end = min(len(text), at + chance.randrange(1, 200))
    middle = (b"", b"\0" * (end - at), chance.randbytes(end - at), b'{"a": [1e999, null', b"\n")
    return text[:at] + chance.choice(middle) + text[end:]


@pytest.mark.parametrize("seed", range(40))
def test_any_damage_leaves_a_report(tmp_path, seed):
    events = [alarm(step, "cv") for step in range(1, 10)]
    folder = write_run(tmp_path / "run", metrics_lines(range(1, 21), evaluated=float), events)
    ablation = {"variants": [{"name": "x", "is_twin": True, "tokens_per_step": 5, "curves": []}]}
    extras = {
        "profile.json": {"device": "CPU", "components": [{"component": "a"}], "findings": []},
        "ablate.json": ablation,
        "evaluations/step-00000005.json": {
            "experts": [{"layer": 0, "top_tokens": [[{"text": "a"}]]}]
        },
        "samples.jsonl": {"step": 1, "text": "a text"},
        "environment.jsonl": {"step": 0, "device": "CPU"},
    }
    for name, values in extras.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(values))
    files = [path for path in folder.rglob("*") if path.is_file()]
    for number, path in enumerate(sorted(files)):
        path.write_bytes(damaged(path.read_bytes(), 100 * seed + number))
    assert write_report([folder])[0].stat().st_size > 1_000_000


ODD = (None, True, -1, 10**400, 1e308, "text", [], [None], {}, {"a": [1]}, [[1, 2]])


@pytest.mark.parametrize("seed", range(40))
def test_any_value_of_the_wrong_type_leaves_a_report(tmp_path, seed):
    chance = random.Random(seed)
    lines = metrics_lines(range(1, 21), evaluated=float)
    events = [alarm(step, "cv", experts=[1]) for step in range(1, 20)]
    for line in [*lines, *events]:
        for name in line:
            if name != "step" and chance.random() < 0.1:
                line[name] = chance.choice(ODD)
    folder = write_run(tmp_path / "run", lines, events)
    assert write_report([folder])[0].stat().st_size > 1_000_000


def test_a_long_run_takes_little_space(tmp_path):
    """With a hundredth of the steps for which bench/report.py measures time and memory."""
    steps = range(10, 20_001, 10)
    lines = metrics_lines(steps, counts=lambda step: [[step % 7 + 1] * 40] * 20)
    folder = write_run(tmp_path / "run", lines, (alarm(step, "cv") for step in steps))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    path, _ = write_report([folder])
    unit = 1 if sys.platform == "darwin" else 1024
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit
    assert path.stat().st_size < 4_000_000
    assert grown < 300e6
