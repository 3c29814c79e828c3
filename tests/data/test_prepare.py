"""Preparing splits the documents, reuses the cache, and leaves nothing incomplete behind."""

import errno
import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from moebius.config import DataConfig
from moebius.data import prepare, verify
from moebius.data.held_out import document_hash
from moebius.data.prepare import is_prepared, reopen
from moebius.data.shards import ShardWriter
from moebius.errors import ConfigError, DataError, StorageError
from tests.data.corpora import configure, configure_mixture, names_in, texts

# If these changed, documents would move between the splits of every corpus.
FIXED_HASHES = {"": 0.866604, "a": 0.26259, "hello": 0.743656, "Möbius\n": 0.161236}

# `moebius.data.prepare` as an attribute is the function.
prepare_module = sys.modules["moebius.data.prepare"]


def test_every_document_is_in_one_split_and_nothing_is_lost(source):
    corpus = prepare(configure(source), 257)
    train, val = texts(corpus, corpus.train), texts(corpus, corpus.val)
    assert sorted(train + val) == sorted(f"document {n} é " * 5 for n in range(200))
    assert not set(train) & set(val)
    assert 5 <= len(val) <= 40
    assert (corpus.train.num_documents, corpus.val.num_documents) == (len(train), len(val))
    assert corpus.val.num_bytes == sum(len(text.encode()) for text in val)
    assert corpus.train.read(0, 1)[0] == corpus.tokenizer.end_of_text
    verify(corpus.folder)


def test_the_hash_that_splits_the_documents_never_changes():
    assert {text: round(document_hash(text)[0], 6) for text in FIXED_HASHES} == FIXED_HASHES


def test_equal_documents_are_in_the_same_split(source):
    rows = [json.dumps({"text": text}) for text in ("a", "b", "c", "d") for _ in range(5)]
    source.write_text("\n".join(rows))
    corpus = prepare(configure(source, val_fraction=0.5), 257)
    assert not set(texts(corpus, corpus.train)) & set(texts(corpus, corpus.val))
    assert corpus.train.num_documents + corpus.val.num_documents == 20


def by_hash(texts: Iterable[str]) -> list[str]:
    return sorted(texts, key=lambda text: document_hash(text)[0])


def test_if_nothing_would_be_trained_on_one_document_is(source):
    corpus = prepare(configure(source, val_fraction=1 - 1e-9), 257)
    ordered = by_hash(f"document {n} é " * 5 for n in range(200))
    assert texts(corpus, corpus.train) == [ordered[-1]]
    assert corpus.val.num_documents == 199
    verify(corpus.folder)


@pytest.mark.parametrize(
    ("num_documents", "val_fraction", "held_out"),
    [(200, 1e-9, 16), (200, 0.01, 16), (100, 0.01, 10), (40, 1e-9, 4), (9, 1e-9, 1), (2, 0.01, 1)],
)
def test_a_small_source_holds_out_16_documents_or_a_tenth_those_with_the_lowest_hashes(
    source, num_documents, val_fraction, held_out
):
    everything = [f"document {n} é " * 5 for n in range(num_documents)]
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in everything))
    corpus = prepare(configure(source, val_fraction=val_fraction), 257)
    assert by_hash(texts(corpus, corpus.val)) == by_hash(everything)[:held_out]
    assert corpus.train.num_documents == num_documents - held_out
    assert "WARNING: val_loss rests on" in " ".join(corpus.notes)
    verify(corpus.folder)


def test_documents_that_are_repeated_count_once_for_the_share_that_is_held_out(source):
    rows = [json.dumps({"text": f"document {n % 20} é"}) + "\n" for n in range(400)]
    source.write_text("".join(rows))
    corpus = prepare(configure(source, val_fraction=1e-9), 257)
    assert len(set(texts(corpus, corpus.val))) == 2
    assert len(set(texts(corpus, corpus.train))) == 18


def test_a_source_that_holds_out_enough_documents_is_split_by_the_fraction_alone(source):
    everything = [f"document {n} é " * 5 for n in range(200)]
    corpus = prepare(configure(source, val_fraction=0.15), 257)
    held_out = [text for text in everything if document_hash(text)[0] < 0.15]
    assert len(held_out) > 16
    assert texts(corpus, corpus.val) == held_out


def test_one_document_is_not_enough(source):
    source.write_text('{"text": "same"}\n{"text": "same"}\n')
    with pytest.raises(
        DataError, match="one document only; at least two different documents are needed"
    ):
        prepare(configure(source), 257)
    source.write_text('{"text": ""}\n\n')
    with pytest.raises(DataError, match="no text in it"):
        prepare(configure(source), 257)
    source.write_text('{"text": "same"}\nbad\n')
    with pytest.raises(DataError, match=r"1 left out; the first: .*rows\.jsonl:2"):
        prepare(configure(source, errors="skip"), 257)
    assert names_in(source.parents[1] / "cache") == []


def test_one_text_file_can_be_the_whole_source(tmp_path):
    text = "".join(f"line {n} of a book\n" for n in range(300))
    (tmp_path / "book").mkdir()
    file = tmp_path / "book" / "only.txt"
    file.write_text(text)
    corpus = prepare(configure(file), 257)
    assert corpus.train.num_bytes + corpus.val.num_bytes == len(text)
    assert corpus.val.num_documents >= 1


def test_a_second_call_tokenizes_nothing(source, monkeypatch):
    reported: list[str] = []
    first = prepare(configure(source), 257, report=reported.append)
    monkeypatch.setattr(prepare_module, "ingest", None)
    second = prepare(configure(source), 257, report=reported.append)
    assert second.folder == first.folder
    assert (second.train.read(0, 50) == first.train.read(0, 50)).all()
    assert len(reported) == 1


def test_is_prepared_tells_whether_everything_is_in_the_cache(source):
    for settings in ({"tokenizer": "bytes"}, {"tokenizer": "bpe"}):
        config = configure(source, **settings)
        assert not is_prepared(config, 300)
        prepare(config, 300)
        assert is_prepared(config, 300)
    assert not is_prepared(replace(config, val_fraction=0.2), 300)


def test_a_tokenizer_with_more_ids_than_the_model_is_an_error(source):
    prepare(configure(source), 257)
    for _ in range(2):  # prepared now, then found in the cache
        with pytest.raises(
            ConfigError,
            match=r"model\.vocab_size=256: the tokenizer has 257 ids; set --model\.vocab_size 257",
        ):
            prepare(configure(source), 256)


def test_documents_left_out_are_reported_and_counted(source):
    with source.open("a") as file:
        file.write("nonsense\n{}\n")
    for _ in range(2):  # prepared now, then found in the cache
        corpus = prepare(configure(source, errors="skip"), 257)
        assert corpus.skipped == 2
        assert corpus.notes[1].startswith("left out 2 documents that could not be read; the first")
        assert "rows.jsonl:201: column 1" in corpus.notes[1]
    with pytest.raises(DataError, match=r"rows\.jsonl:201"):
        prepare(configure(source), 257)


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt),
        (RuntimeError(), RuntimeError),
        (OSError(errno.ENOSPC, "No space left on device"), StorageError),
    ],
)
def test_an_interruption_leaves_nothing_behind(source, monkeypatch, error, raised):
    original = ShardWriter.append

    def fail_later(self, tokens, num_documents, num_bytes):
        if self.split.documents >= 50:
            raise error
        original(self, tokens, num_documents, num_bytes)

    with monkeypatch.context() as patched:
        patched.setattr(ShardWriter, "append", fail_later)
        patched.setattr("moebius.data.line_rows.CHUNK_BYTES", 1000)
        patched.setattr("moebius.data.ingest.BATCH_BYTES", 1000)
        with pytest.raises(raised) as caught:
            prepare(configure(source), 257)
    if raised is StorageError:
        assert "No space left on device; set --data.cache" in str(caught.value)
    assert names_in(source.parents[1] / "cache") == []
    prepare(configure(source), 257)


def test_a_file_that_may_not_grow_further_is_one_line(source):
    config = configure(source)
    program = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))\n"
        "from moebius.config import DataConfig; from moebius.data import prepare\n"
        "from moebius.errors import StorageError\n"
        f"try: prepare({config!r}, 257)\n"
        "except StorageError as error: print(error.exit_code, error)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout.startswith("6 ")
    assert "File too large; set --data.cache" in result.stdout
    assert names_in(Path(config.cache)) == []


def test_a_cache_that_cannot_be_created_is_an_error(source, tmp_path):
    (tmp_path / "in the way").write_text("")
    with pytest.raises(StorageError, match=r"in the way.*set --data\.cache") as caught:
        prepare(configure(source, cache=str(tmp_path / "in the way")), 257)
    assert caught.value.exit_code == 6


def test_a_cache_that_cannot_be_written_is_found_before_any_text_is_read(source, monkeypatch):
    cache = Path(configure(source).cache)
    cache.mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != str(cache))
    monkeypatch.setattr(prepare_module, "tokenizer_key", None)
    with pytest.raises(StorageError, match=r"Permission denied; set --data\.cache"):
        prepare(configure(source), 257)


def test_a_damaged_file_in_the_cache_is_named(source):
    corpus = prepare(configure(source), 257)
    (corpus.folder / "tokenizer.json").write_text(corpus.tokenizer.to_json() + " ")
    with pytest.raises(
        DataError, match=r"tokenizer\.json: not the tokenizer that made the tokens"
    ):
        prepare(configure(source), 257)
    corpus.tokenizer.save(corpus.folder / "tokenizer.json")
    (corpus.folder / "val-00000.bin").write_bytes(b"")
    with pytest.raises(DataError, match=r"val-00000\.bin: 0 bytes"):
        prepare(configure(source), 257)


def _prepare_and_check(config: DataConfig, ready, folders) -> None:
    ready.wait()
    corpus = prepare(config, 300)
    verify(corpus.folder)
    folders.put(str(corpus.folder))


def test_processes_that_prepare_the_same_source_at_once_prepare_it_once(source):
    config = configure(source, tokenizer="bpe")
    # Forking a process that has Rust threads is undefined behavior.
    context = multiprocessing.get_context("spawn")
    ready, folders = context.Barrier(3), context.Queue()
    processes = [
        context.Process(target=_prepare_and_check, args=(config, ready, folders)) for _ in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    (folder,) = {folders.get(timeout=5) for _ in processes}
    corpus, tokenizer = sorted(names_in(Path(config.cache)))
    assert (corpus, tokenizer.partition("-")[0]) == (Path(folder).name, "tokenizer")


def test_a_damaged_tokenizer_in_the_cache_is_named(source):
    config = configure(source, tokenizer="bpe")
    prepare(config, 300)
    (file,) = Path(config.cache).glob("tokenizer-*.json")
    file.write_text(file.read_text().replace("a", "b", 1))
    with pytest.raises(DataError, match=r"tokenizer-.*\.json: damaged, its checksum differs"):
        prepare(config, 300)


def test_a_read_only_cache_is_read_and_not_written(source, monkeypatch):
    config = configure(source, tokenizer="bpe")
    prepare(config, 300)
    # If everything is prepared, nothing is locked, and so nothing is written.
    monkeypatch.setattr(prepare_module, "exclusive_lock", None)
    assert len(prepare(config, 300).train) > 0


def test_a_full_disk_is_one_line_and_leaves_nothing_behind(source, monkeypatch):
    config = configure(source)
    original = Path.open

    def on_a_full_disk(self, mode="r", *arguments, **named):
        return original(Path("/dev/full") if mode == "wb" else self, mode, *arguments, **named)

    with (
        monkeypatch.context() as patched,
        pytest.raises(StorageError, match=r"No space left on device; set --data\.cache") as caught,
    ):
        patched.setattr(Path, "open", on_a_full_disk)
        prepare(config, 257)
    assert caught.value.exit_code == 6
    assert names_in(Path(config.cache)) == []


def test_several_sources_are_one_corpus_with_one_tokenizer(source):
    config = configure_mixture(source, tokenizer="bpe")
    corpus = prepare(config, 300)
    assert [part.weight for part in corpus.train.parts] == [5, 3, 2]
    assert corpus.train.num_documents + corpus.val.num_documents == 600
    train, val = set(texts(corpus, corpus.train)), set(texts(corpus, corpus.val))
    assert not train & val  # documents 100 to 199 are in two sources
    (tokenizer,) = Path(config.cache).glob("tokenizer-*.json")
    assert {(folder / "tokenizer.json").read_text() for folder in corpus.folders} == {
        tokenizer.read_text()
    }


def test_a_prepared_source_is_reused_in_another_mixture(source, monkeypatch):
    config = configure_mixture(source)
    folders = prepare(config, 257).folders
    monkeypatch.setattr(prepare_module, "ingest", None)
    assert prepare(replace(config, weights=(0, 1, 4)), 257).folders == folders[1:]
    assert prepare(configure(source), 257).folders == folders[:1]


def test_the_changed_count_of_held_out_bytes_is_refused(source):
    corpus = prepare(configure(source), 257)
    meta = corpus.folder / "meta.json"
    values = json.loads(meta.read_text())
    values["splits"]["val"]["bytes"] *= 2
    meta.write_text(json.dumps(values))
    with pytest.raises(DataError, match=r"meta\.json: not readable .*its checksum differs"):
        prepare(configure(source), 257)


def test_a_missing_tokenizer_in_a_prepared_folder_is_called_missing(source):
    corpus = prepare(configure(source), 257)
    (corpus.folder / "tokenizer.json").unlink()
    with pytest.raises(DataError, match=r"tokenizer\.json: missing; delete "):
        prepare(configure(source), 257)


def test_a_vocabulary_too_small_for_a_bpe_is_refused_before_anything_is_read(source):
    reported: list[str] = []
    with pytest.raises(ConfigError, match=r"model\.vocab_size=100: data.tokenizer=bpe needs at"):
        prepare(configure(source, tokenizer="bpe"), 100, report=reported.append)
    assert reported == []


def test_the_two_bars_of_a_source_say_what_they_are_for(source, monkeypatch):
    bars: list[str] = []

    @contextmanager
    def bar(config, task):
        bars.append(task)
        yield lambda num_bytes: None

    monkeypatch.setattr(prepare_module, "progress_bar", bar)
    prepare(configure(source, val_fraction=1e-9), 257, progress=True)
    assert bars == ["reading", "tokenizing"]


def test_a_file_with_a_comma_in_its_name_may_be_gone_once_it_is_prepared(source):
    comma = source.with_name("a,b.jsonl")
    comma.write_bytes(source.read_bytes())
    config = configure(source, source=str(comma))
    corpus = prepare(config, 257)
    comma.unlink()
    again = reopen(config, [folder.name for folder in corpus.folders], corpus.tokenizer)
    assert (again.identity, again.names) == (corpus.identity, (str(comma),))
    with pytest.raises(DataError, match="2 sources, but prepared from 3"):
        reopen(config, ["a", "b", "c"], corpus.tokenizer)


@pytest.mark.parametrize("bad", ["{source},{source}", "{source},", ","])
def test_a_list_with_an_empty_or_repeated_source_is_an_error(source, bad):
    with pytest.raises(ConfigError, match="a source is empty, or named twice"):
        prepare(configure(source, source=bad.format(source=source)), 257)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ((1, 2), "must be one number for each of the 3 sources"),
        ((1, -1, 1), "must be at least 0"),
        ((0, 0, 0), "not all 0"),
        (-1, "must be at least 0"),
        (0, "not all 0"),
    ],
)
def test_weights_that_do_not_fit_the_sources_are_an_error(source, weights, expected):
    with pytest.raises(ConfigError, match=rf"data\.weights=.*{expected}") as caught:
        configure(source, source="a,b,c", weights=weights)
    assert "\n" not in str(caught.value)


def test_progress_goes_to_stderr(source, capsys):
    prepare(configure(source), 257, progress=True)
    assert capsys.readouterr().out == ""


def test_a_local_folder_can_be_read_as_a_hugging_face_data_set(source):
    corpus = prepare(configure(source, source=f"hf:{source.parent}"), 257)
    assert corpus.train.num_documents + corpus.val.num_documents == 200
