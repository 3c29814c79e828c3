"""A run's own text is compared with what the run read of it."""

from dataclasses import replace
from pathlib import Path

import pytest

from moebius.config import Config, DataConfig
from moebius.data.shards import META
from moebius.infer.evaluable import OtherText, evaluable
from moebius.infer.seen_text import change, seen
from tests.train.runs import new_session, silent, train

DOCUMENTS = 60
"""So few that the source holds out more of them than `data.val_fraction` says."""


def write_documents(folder: Path, count: int) -> Path:
    folder.mkdir(exist_ok=True)
    for number in range(count):
        (folder / f"{number}.txt").write_text(
            f"{number} times {number} is {number * number}. " * 9
        )
    return folder


@pytest.fixture
def config(small, tmp_path) -> Config:
    """The configuration of a run on two folders of small documents, of one step."""
    sources = [write_documents(tmp_path / name, DOCUMENTS) for name in ("one", "two")]
    (sources[1] / "more.txt").write_text("The second folder has another document. " * 9)
    data = replace(small.data, source=",".join(map(str, sources)), val_fraction=0.02)
    return replace(small, data=data, train=replace(small.train, steps=1))


def other_text(root: Path, source: object) -> tuple[OtherText, list[str]]:
    """Return the text as it is evaluated with the run, and the lines about it."""
    lines: list[str] = []
    text = evaluable(str(root), None, silent).other_text(str(source), lines.append)
    return text, [line for line in lines if "the run is trained on it" in line]


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"])
def test_a_text_that_was_edited_is_not_what_the_run_held_out(config, tokenizer, tmp_path):
    session = new_session(replace(config, data=replace(config.data, tokenizer=tokenizer)))
    train(session)
    root, held_out = session.run.root, list(session.corpus.val.read(0, len(session.corpus.val)))
    one, two = tmp_path / "one", tmp_path / "two"
    both, lines = other_text(root, f"{one},{two}")
    assert both.own == {str(one): "unchanged", str(two): "unchanged"}
    assert list(both.corpus.val.read(0, len(both.corpus.val))) == held_out
    assert len(lines) == 2 and not any("WARNING" in line for line in lines)

    for number in range(DOCUMENTS // 2):  # so fewer are left that more must be held out
        (one / f"{number}.txt").unlink()
    for source in (one, f"{one}/*.txt"):
        text, lines = other_text(root, source)
        assert text.own == {str(source): "changed"} and len(lines) == 1
        assert lines[0].startswith(f"WARNING: {source}: the run is trained on it, and it has chan")
    both, lines = other_text(root, f"{one},{two}")
    assert both.own == {str(one): "changed", str(two): "unchanged"}
    assert [line.startswith("WARNING") for line in lines] == [True, False]


def test_without_what_the_run_read_it_cannot_be_told(config, tmp_path):
    session = new_session(config)
    train(session)
    (session.corpus.folders[1] / META).write_text("{}")
    text, (line,) = other_text(session.run.root, tmp_path / "two")
    assert text.own == {str(tmp_path / "two"): "unknown"}
    assert line.startswith("WARNING: ") and "it cannot be told whether it has changed" in line


def test_a_text_of_others_has_nothing_to_compare(config, tmp_path):
    session = new_session(config)
    train(session)
    text, lines = other_text(session.run.root, write_documents(tmp_path / "new", 5))
    assert text.own == {} and lines == []
    assert text.corpus.val.num_documents == 5


def test_a_change_is_told_by_the_tokens(config, tmp_path):
    one, two = new_session(config).corpus.folders
    assert change(one, one) == "unchanged"
    assert change(one, two) == change(two, one) == "changed"
    assert change(None, one) == change(tmp_path / "gone", one) == "unknown"


def test_which_of_the_runs_sources_a_source_is(tmp_path):
    folder = write_documents(tmp_path / "folder", 3)
    own = [DataConfig(source="python-stdlib"), DataConfig(source=str(folder))]
    assert seen(DataConfig(source="python-stdlib"), own).own == own[0]
    assert seen(DataConfig(source=f"{folder}/*.txt"), own) == (own[1], 3, 3)
    assert seen(DataConfig(source=f"{folder}/1.txt"), own) == (None, 1, 1)
    assert seen(DataConfig(source="https://example.org/a.txt"), own) == (None, 0, 0)
