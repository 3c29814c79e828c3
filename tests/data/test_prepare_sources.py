"""Several sources: commas between them and in their names, and text that is in two of them."""

import os
import shutil
from pathlib import Path

import pytest

from moebius.config import DataConfig
from moebius.data import prepare
from moebius.data.source_names import weighted_sources
from moebius.errors import ConfigError, DataError
from tests.data.corpora import configure


def test_a_comma_in_the_name_of_a_file(source):
    comma = source.with_name("a,b.jsonl")
    comma.write_bytes(source.read_bytes())
    other = source.with_name("c.jsonl")
    other.write_text('{"text": "one"}\n{"text": "two"}\n')
    assert prepare(configure(source, source=str(comma)), 257).train.num_documents > 100
    with pytest.raises(DataError, match=r"for the file '.*a,b\.jsonl', write \? in place of its"):
        prepare(configure(source, source=f"{other}, {comma}"), 257)
    listed = f"{other}, {comma.with_name('a?b.jsonl')}"
    assert len(prepare(configure(source, source=listed), 257).folders) == 2


@pytest.mark.parametrize(
    ("listed", "named"),
    [
        ("c,d/*.jsonl", "the folder 'c,d'"),
        ("rows.jsonl, c,d/sub/none.txt", "the folder 'c,d'"),
        ("c,d,e/*", "the folder 'c,d,e'"),
        ("c,d/a,b", "the folder 'c,d'"),
        ("c,d/**/x.jsonl,rows.jsonl", "the folder 'c,d'"),
    ],
)
def test_a_comma_in_the_name_of_a_folder_is_explained(source, monkeypatch, listed, named):
    monkeypatch.chdir(source.parent)
    for folder in ("c,d", "c,d,e"):
        Path(folder).mkdir()
        Path(folder, "x.jsonl").write_bytes(source.read_bytes())
    with pytest.raises(DataError, match=f"for {named}, write \\? in place of its comma: 'c\\?d"):
        prepare(configure(source, source=listed), 257)
    assert prepare(configure(source, source="c?d/*.jsonl"), 257).train.num_documents > 100
    assert prepare(configure(source, source="c,d"), 257).train.num_documents > 100


@pytest.mark.parametrize(
    "listed",
    [
        "t,./t",
        "t,t/",
        "t,link",
        "t,t/*.jsonl",
        "t/rows.jsonl,t",
        "t/../t,./t//",
        "t,t/**",
        "t,copy",
    ],
)
@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"])
def test_one_text_under_two_names_is_refused(source, monkeypatch, listed, tokenizer):
    monkeypatch.chdir(source.parents[1])
    source.parent.rename("t")
    Path("link").symlink_to("t")
    shutil.copytree("t", "copy")
    config = configure(source, source=listed, tokenizer=tokenizer, cache="cache")
    reported: list[str] = []
    with pytest.raises(ConfigError, match="are the same text; name it once"):
        prepare(config, 300, report=reported.append)
    assert reported == []  # before a tokenizer is trained


def test_files_that_two_sources_have_in_common_are_said(source):
    source.with_name("more.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    folder = source.parent
    config = configure(folder, source=f"{folder},{folder}/m*", cache=str(folder.parent / "c"))
    for _ in range(2):
        reported: list[str] = []
        prepare(config, 257, report=reported.append)
        assert (
            f"WARNING: {folder} and {folder}/m* have 1 file in common, such as "
            f"{folder}/more.jsonl, whose text counts in both"
        ) in reported


def test_the_names_of_many_sources_are_looked_at_a_few_times_each(monkeypatch, tmp_path):
    looked: list[str] = []
    exists = os.path.exists
    monkeypatch.setattr(os.path, "exists", lambda path: (looked.append(path), exists(path))[1])
    names = [f"{tmp_path}/part-{n:04d}/*.jsonl" for n in range(1000)]
    assert len(weighted_sources(DataConfig(source=",".join(names)))) == 1000
    assert len(looked) <= 2 * len(names) + 1
    looked.clear()
    short = [f"n{n}" for n in range(1000)]  # without a slash, as one name with commas might be
    assert len(weighted_sources(DataConfig(source=",".join(short)))) == 1000
    assert len(looked) < 130 * len(short)
