"""Names in the cache depend on the contents, and the remains of killed processes are removed."""

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from moebius.config import DataConfig
from moebius.data import prepare
from moebius.data.cache import source_key, tokenizer_key
from moebius.data.inventory import inventory
from moebius.errors import DataError
from tests.data.corpora import configure, names_in


def key_of(config: DataConfig, vocab_size: int) -> str:
    listed = {config: inventory(config)}
    return source_key(config, tokenizer_key(config, vocab_size, listed), listed[config])


def test_the_key_depends_on_whatever_the_result_depends_on(source, tmp_path):
    def key(vocab_size: int = 300, **settings) -> str:
        return key_of(configure(source, **{"tokenizer": "bpe"} | settings), vocab_size)

    prepared = prepare(configure(source), 257)
    tokenizer_json = tmp_path / "given.json"
    prepared.tokenizer.save(tokenizer_json)
    keys = [
        key(),
        key(400),
        key(text_field="body"),
        key(errors="skip"),
        key(val_fraction=0.2),
        key(tokenizer="bytes"),
    ]
    keys.append(key(tokenizer=str(tokenizer_json)))
    tokenizer_json.write_text(tokenizer_json.read_text() + "\n")
    keys.append(key(tokenizer=str(tokenizer_json)))
    before, state = source.read_bytes(), source.stat()
    source.write_bytes(before.replace(b"document 7 ", b"document 8 "))
    os.utime(source, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert (source.stat().st_size, source.stat().st_mtime_ns) == (len(before), state.st_mtime_ns)
    keys.append(key())
    keys.append(key(format="text"))
    assert len(set(keys)) == len(keys)
    assert key(cache="elsewhere") == key(document_masking=False) == key(workers=3) == key()


def test_the_vocabulary_in_effect_is_what_counts(source):
    keys = {
        key_of(configure(source, tokenizer="bpe", vocab_size=300), size) for size in (300, 400)
    }
    keys.add(key_of(configure(source, tokenizer="bpe"), 300))
    assert len(keys) == 1
    assert key_of(configure(source), 300) == key_of(configure(source), 400)


def test_abandoned_folders_are_removed_and_recent_ones_are_left(source):
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
    assert sorted(names_in(cache)) == [".new.partial", key_of(config, 257)]


def test_a_copy_of_the_standard_library_is_read_by_the_rules_for_any_folder(tmp_path, monkeypatch):
    """The files of python-stdlib that are not UTF-8 are left out without a word; others never."""
    library = tmp_path / "lib"
    library.mkdir()
    for n in range(20):
        (library / f"m{n}.py").write_text(f"{n}\n" * 50)
    (library / "latin.py").write_bytes("é".encode("latin-1"))
    (library / "marked.py").write_bytes(b"\xef\xbb\xbf1\n")
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"stdlib": str(library)})
    standard = configure(library, source="python-stdlib", cache=str(tmp_path / "cache"))
    corpus = prepare(standard, 257)
    assert corpus.skipped == 0
    copy = configure(library, cache=str(tmp_path / "cache"))
    for tokenizer in ("bytes", "bpe"):
        ours, theirs = (
            key_of(replace(config, tokenizer=tokenizer), 300) for config in (copy, standard)
        )
        assert ours != theirs
    with pytest.raises(DataError, match=r"latin\.py: byte offset 0 is not UTF-8"):
        prepare(copy, 257)
    skipping = prepare(replace(copy, errors="skip"), 257)
    assert skipping.skipped == 1
    num_bytes = [corpus.train.num_bytes + corpus.val.num_bytes for corpus in (corpus, skipping)]
    assert num_bytes[0] - num_bytes[1] == 3  # the mark


def test_files_that_are_damaged_count_in_the_key_because_they_are_reported(source):
    config = configure(source.parent, cache=str(source.parents[1] / "c"), errors="skip")
    assert prepare(config, 257).skipped == 0
    source.with_name("damaged.txt.gz").write_bytes(b"not compressed")
    assert prepare(config, 257).skipped == 1


def test_the_key_depends_on_the_rules_of_reading(source, monkeypatch):
    before = key_of(configure(source), 257)
    monkeypatch.setattr("moebius.data.cache.READING_VERSION", -1)
    assert key_of(configure(source), 257) != before
