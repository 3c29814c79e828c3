"""Preparation: the split, the cache, and that nothing half-made is left, whatever goes wrong."""

import errno
import json
import multiprocessing
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from moebius.config import DataConfig
from moebius.data import Corpus, TokenStream, prepare, verify
from moebius.data.prepare import cache_key, tokenizer_key
from moebius.data.shards import ShardWriter
from moebius.data.tokenise import document_hash
from moebius.errors import ConfigError, DataError, StorageError

# of Python 3.11 on x86-64 Linux; a change of these moves documents between the splits of every corpus
FIXED_HASHES = {"": 0.866604, "a": 0.26259, "hello": 0.743656, "Möbius\n": 0.161236}

preparation = sys.modules["moebius.data.prepare"]  # the package's `prepare` is the function


@pytest.fixture
def source(tmp_path: Path) -> Path:
    file = tmp_path / "source" / "rows.jsonl"
    file.parent.mkdir()
    file.write_text("".join(json.dumps({"text": f"document {n} é " * 5}) + "\n" for n in range(200)))
    return file


def configure(source: Path, /, **settings) -> DataConfig:
    return DataConfig(
        **{"source": str(source), "tokenizer": "bytes", "cache": str(source.parents[1] / "cache"), "val_fraction": 0.1}
        | settings
    )


def key_of(config: DataConfig, vocab_size: int) -> str:
    return cache_key(config, tokenizer_key(config, vocab_size))


def texts(corpus: Corpus, stream: TokenStream) -> list[str]:
    """The documents of a split, cut at the separators."""
    found: list[list[int]] = []
    for token in stream.read(0, len(stream)).tolist():
        if token == corpus.tokenizer.end_of_text:
            found.append([])
        else:
            found[-1].append(token)
    return [corpus.tokenizer.decode(ids) for ids in found]


def debris(cache: Path) -> list[str]:
    return [path.name for path in cache.iterdir()] if cache.exists() else []


def test_every_document_is_in_one_split_and_nothing_is_lost(source):
    corpus = prepare(configure(source), 257)
    train, val = texts(corpus, corpus.train), texts(corpus, corpus.val)
    assert sorted(train + val) == sorted(f"document {n} é " * 5 for n in range(200))
    assert not set(train) & set(val)
    assert 5 <= len(val) <= 40
    assert (corpus.train.num_documents, corpus.val.num_documents) == (len(train), len(val))
    assert corpus.val.num_bytes == sum(len(text.encode()) for text in val)
    assert corpus.val_bytes_per_token == corpus.val.num_bytes / (corpus.val.num_bytes + len(val))
    assert corpus.train.read(0, 1)[0] == corpus.tokenizer.end_of_text
    verify(corpus.folder)
    assert "\n" not in corpus.summary()


def test_the_hash_is_the_same_on_any_machine():
    assert {text: round(document_hash(text.encode()), 6) for text in FIXED_HASHES} == FIXED_HASHES


def test_equal_documents_share_a_side(source):
    rows = [json.dumps({"text": text}) for text in ("a", "b", "c", "d") for _ in range(5)]
    source.write_text("\n".join(rows))
    corpus = prepare(configure(source, val_fraction=0.5), 257)
    assert not set(texts(corpus, corpus.train)) & set(texts(corpus, corpus.val))
    assert corpus.train.num_documents + corpus.val.num_documents == 20


@pytest.mark.parametrize("val_fraction", [1e-9, 1 - 1e-9])
def test_a_side_that_got_nothing_gets_one_document(source, val_fraction):
    corpus = prepare(configure(source, val_fraction=val_fraction), 257)
    few, many = sorted((corpus.train, corpus.val), key=len)
    assert (few.num_documents, many.num_documents) == (1, 199)
    ordered = sorted((f"document {n} é " * 5 for n in range(200)), key=lambda text: document_hash(text.encode()))
    assert texts(corpus, few) == [ordered[0] if few is corpus.val else ordered[-1]]
    assert (few is corpus.val) == (val_fraction < 0.5)
    verify(corpus.folder)


def test_one_document_is_not_enough(source):
    source.write_text('{"text": "same"}\n{"text": "same"}\n')
    with pytest.raises(DataError, match="one document only; at least two different documents are needed"):
        prepare(configure(source), 257)
    source.write_text('{"text": ""}\n\n')
    with pytest.raises(DataError, match="no text in it"):
        prepare(configure(source), 257)
    source.write_text('{"text": "same"}\nbad\n')
    with pytest.raises(DataError, match=r"1 left out; the first: .*rows\.jsonl:2"):
        prepare(configure(source, errors="skip"), 257)
    assert debris(source.parents[1] / "cache") == []


def test_one_text_file_can_be_the_whole_source(tmp_path):
    text = "".join(f"line {n} of a book\n" for n in range(300))
    (tmp_path / "book").mkdir()
    file = tmp_path / "book" / "only.txt"
    file.write_text(text)
    corpus = prepare(configure(file), 257)
    assert corpus.train.num_bytes + corpus.val.num_bytes == len(text)
    assert corpus.val.num_documents >= 1


def test_a_second_call_tokenises_nothing(source, monkeypatch):
    said: list[str] = []
    first = prepare(configure(source), 257, report=said.append)
    monkeypatch.setattr(preparation, "tokenise", None)
    second = prepare(configure(source), 257, report=said.append)
    assert second.folder == first.folder
    assert (second.train.read(0, 50) == first.train.read(0, 50)).all()
    assert len(said) == 1


def test_the_key_follows_whatever_the_result_depends_on(source, tmp_path):
    def key(vocab_size: int = 300, **settings) -> str:
        return key_of(configure(source, **{"tokenizer": "bpe"} | settings), vocab_size)

    prepared = prepare(configure(source), 257)
    given = tmp_path / "given.json"
    prepared.tokenizer.save(given)
    keys = [key(), key(400), key(text_field="body"), key(errors="skip"), key(val_fraction=0.2), key(tokenizer="bytes")]
    keys.append(key(tokenizer=str(given)))
    given.write_text(given.read_text() + "\n")
    keys.append(key(tokenizer=str(given)))
    os.utime(source, (1, 1))
    keys.append(key())
    assert len(set(keys)) == len(keys)
    assert key(cache="elsewhere") == key(document_masking=False) == key(workers=3) == key()


def test_the_vocabulary_in_effect_is_what_counts(source):
    keys = {key_of(configure(source, tokenizer="bpe", vocab_size=300), size) for size in (300, 400)}
    keys.add(key_of(configure(source, tokenizer="bpe"), 300))
    assert len(keys) == 1
    assert key_of(configure(source), 300) == key_of(configure(source), 400)


def test_a_tokenizer_larger_than_the_model(source):
    prepare(configure(source), 257)
    for _ in range(2):  # made now, and from the cache
        with pytest.raises(ConfigError, match=r"model\.vocab_size=256: the tokenizer has 257 ids; set --model\.vocab_size 257"):
            prepare(configure(source), 256)


def test_what_was_left_out_is_reported_and_remembered(source):
    with source.open("a") as file:
        file.write("nonsense\n{}\n")
    said: list[str] = []
    assert prepare(configure(source, errors="skip"), 257, report=said.append).skipped == 2
    assert said[1].startswith("left out 2 documents that could not be read; the first: ")
    assert "rows.jsonl:201: column 1" in said[1]
    corpus = prepare(configure(source, errors="skip"), 257)
    assert corpus.skipped == 2
    assert "2 documents left out" in corpus.summary()
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
def test_an_interruption_leaves_no_folder(source, monkeypatch, error, raised):
    original = ShardWriter.append

    def fail_later(self, ids, num_bytes, begins):
        if self.split.documents == 50:
            raise error
        original(self, ids, num_bytes, begins)

    with monkeypatch.context() as patched:
        patched.setattr(ShardWriter, "append", fail_later)
        with pytest.raises(raised) as caught:
            prepare(configure(source), 257)
    if raised is StorageError:
        assert "No space left on device; set --data.cache" in str(caught.value)
    assert debris(source.parents[1] / "cache") == []
    prepare(configure(source), 257)


def test_a_file_system_that_takes_no_more_is_one_line(source):
    config = configure(source)
    program = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))\n"
        "from moebius.config import DataConfig; from moebius.data import prepare\n"
        "from moebius.errors import StorageError\n"
        f"try: prepare({config!r}, 257)\n"
        "except StorageError as error: print(error.exit_code, error)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("6 ")
    assert "File too large; set --data.cache" in result.stdout
    assert debris(Path(config.cache)) == []


def test_a_cache_that_cannot_be_made(source, tmp_path):
    (tmp_path / "in the way").write_text("")
    with pytest.raises(StorageError, match=r"in the way.*set --data\.cache") as caught:
        prepare(configure(source, cache=str(tmp_path / "in the way")), 257)
    assert caught.value.exit_code == 6


def test_a_damaged_cache_names_the_file(source):
    corpus = prepare(configure(source), 257)
    (corpus.folder / "tokenizer.json").write_text(corpus.tokenizer.to_json() + " ")
    with pytest.raises(DataError, match=r"tokenizer\.json: not the one the tokens were made with"):
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


def test_processes_that_prepare_at_once_do_not_disturb_each_other(source):
    config = configure(source, tokenizer="bpe")
    context = multiprocessing.get_context("spawn")  # forking a process with Rust threads is undefined
    ready, folders = context.Barrier(3), context.Queue()
    processes = [context.Process(target=_prepare_and_check, args=(config, ready, folders)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    (folder,) = {folders.get(timeout=5) for _ in processes}
    corpus, tokenizer = sorted(debris(Path(config.cache)))
    assert (corpus, tokenizer.partition("-")[0]) == (Path(folder).name, "tokenizer")


def test_abandoned_folders_are_cleared_and_living_ones_left(source):
    config = configure(source)
    cache = Path(config.cache)
    for name in ("old", "new"):
        (cache / f".{name}.partial").mkdir(parents=True)
        (cache / f".{name}.partial" / "train-00000.bin").write_bytes(b"")
    old = cache / ".old.partial"
    eight_days_ago = time.time() - 8 * 24 * 3600
    for path in (old / "train-00000.bin", old):
        os.utime(path, (eight_days_ago, eight_days_ago))
    prepare(config, 257)
    assert sorted(debris(cache)) == [".new.partial", key_of(config, 257)]


def test_a_damaged_tokenizer_is_named(source):
    config = configure(source, tokenizer="bpe")
    prepare(config, 300)
    (file,) = Path(config.cache).glob("tokenizer-*.json")
    file.write_text(file.read_text().replace("a", "b", 1))
    with pytest.raises(DataError, match=r"tokenizer-.*\.json: damaged, its checksum differs"):
        prepare(config, 300)


def test_a_read_only_cache_is_read_and_not_written(source, monkeypatch):
    config = configure(source, tokenizer="bpe")
    prepare(config, 300)
    monkeypatch.setattr(preparation, "alone", None)  # nothing is locked, and so nothing written, where all is there
    assert len(prepare(config, 300).train) > 0


def test_a_full_disk_is_one_line_and_leaves_nothing(source, monkeypatch):
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
    assert debris(Path(config.cache)) == []


def mixed(source: Path, **settings) -> DataConfig:
    """Three sources of 200, 300 and 100 documents, some of them in two."""
    files = [source]
    for name, first, count in (("b", 100, 300), ("c", 1000, 100)):
        files.append(source.with_name(f"{name}.jsonl"))
        rows = (json.dumps({"text": f"document {n} é " * 5}) + "\n" for n in range(first, first + count))
        files[-1].write_text("".join(rows))
    return configure(source, source=", ".join(map(str, files)), weights=(5, 3, 2), **settings)


def test_several_sources_are_one_corpus_with_one_tokenizer(source):
    config = mixed(source, tokenizer="bpe")
    corpus = prepare(config, 300)
    assert [part.weight for part in corpus.train.parts] == [5, 3, 2]
    assert corpus.train.num_documents + corpus.val.num_documents == 600
    assert "3 sources" in corpus.summary()
    train, val = set(texts(corpus, corpus.train)), set(texts(corpus, corpus.val))
    assert not train & val  # documents 100 to 199 are in two sources
    (tokenizer,) = Path(config.cache).glob("tokenizer-*.json")
    assert {(folder / "tokenizer.json").read_text() for folder in corpus.folders} == {tokenizer.read_text()}
    each = [part.num_bytes / (part.stop - part.start) for part in corpus.val.parts]
    assert corpus.val_bytes_per_token == pytest.approx(0.5 * each[0] + 0.3 * each[1] + 0.2 * each[2])


def test_a_source_is_found_again_in_another_mixture(source, monkeypatch):
    config = mixed(source)
    folders = prepare(config, 257).folders
    monkeypatch.setattr(preparation, "tokenise", None)
    assert prepare(replace(config, weights=(0, 1, 4)), 257).folders == folders[1:]
    assert prepare(configure(source), 257).folders == folders[:1]


@pytest.mark.parametrize("bad", ["{source},{source}", "{source},", ","])
def test_sources_that_are_no_list(source, bad):
    with pytest.raises(ConfigError, match="a source is empty, or named twice"):
        prepare(configure(source, source=bad.format(source=source)), 257)


@pytest.mark.parametrize("weights", [(1, 2), (1, -1, 1), (0, 0, 0), -1, 0])
def test_weights_that_are_none(source, weights):
    with pytest.raises(ConfigError, match=r"data\.weights=.*: 3 \(one a source\) are wanted, at least 0, not all 0") as caught:
        configure(source, source="a,b,c", weights=weights)
    assert "\n" not in str(caught.value)


def test_progress_goes_to_stderr(source, capsys):
    prepare(configure(source), 257, progress=True)
    assert capsys.readouterr().out == ""


def test_hugging_face_on_a_local_folder(source):
    corpus = prepare(configure(source, source=f"hf:{source.parent}"), 257)
    assert corpus.train.num_documents + corpus.val.num_documents == 200
