"""Ids come back in order from any number of processes, none of which outlives its owner."""

import gzip
import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from moebius.config import DataConfig
from moebius.data import packing, prepare, sources, workers
from moebius.data.child import python_command
from moebius.data.chunk import DOCUMENT, TEXT_PIECE, Chunk, FilePart
from moebius.data.packing import Piece, Rules
from moebius.data.shards import SPLITS
from moebius.data.sources import chunks, documents
from moebius.data.tally import Tally
from moebius.data.tokenizer import Tokenizer, prepare_tokenizer
from moebius.data.workers import BATCHES_PER_WORKER, Batch, pack_batches
from moebius.errors import DataError, StorageError
from moebius.hardware.processor import cores

Texts = tuple[list[str], int]
RULES = Rules(0.0)  # nothing is held out


class Saved(NamedTuple):
    """A tokenizer, and the file that it is saved in."""

    tokenizer: Tokenizer
    file: Path

    def encoded(self, batches: Iterator[Texts], num_workers: int) -> Iterator[Any]:
        """Yield the number of ids of each batch's texts, and the batch's number."""
        pieces = ((batch_of(texts), number) for texts, number in batches)
        packed = pack_batches(pieces, self.tokenizer, RULES, self.file, num_workers)
        return ((np.frombuffer(found.tokens["train"], "<u2"), number) for found, number in packed)


@pytest.fixture
def saved(tmp_path) -> Saved:
    tokenizer = prepare_tokenizer(DataConfig(tokenizer="bytes"), 257, [])
    tokenizer.save(tmp_path / "tokenizer.json")
    return Saved(tokenizer, tmp_path / "tokenizer.json")


@pytest.fixture
def started(monkeypatch) -> list["subprocess.Popen[bytes]"]:
    """All processes that the test has started so far."""
    processes: list[subprocess.Popen[bytes]] = []
    original = workers._Worker._start

    def start(self: Any) -> "subprocess.Popen[bytes]":
        processes.append(original(self))
        return processes[-1]

    monkeypatch.setattr(workers._Worker, "_start", start)
    return processes


def batch_of(texts: list[str]) -> Batch:
    return Batch([Piece(Chunk(DOCUMENT, text.encode(), "")) for text in texts], False)


def tokens_of(tokenizer: Tokenizer, texts: list[str]) -> list[int]:
    """Return what `Packer` makes of the texts: a separator before each that is not empty."""
    ids = ([tokenizer.end_of_text, *tokenizer.encode(text)] for text in texts if text)
    return [number for numbers in ids for number in numbers]


def some_batches(number: int) -> list[Texts]:
    """Return batches of very different lengths, one of them empty, with their numbers."""
    return [
        (["", f"batch {n} é\n" * (1 + 500 * (n % 3)), "\0"][: (n + 1) % 4], n)
        for n in range(number)
    ]


@pytest.mark.parametrize("num_workers", [1, 3])
def test_ids_and_contexts_come_in_the_order_of_the_batches(saved, started, num_workers):
    batches = some_batches(14)
    encoded = list(saved.encoded(iter(batches), num_workers))
    assert [context for _, context in encoded] == [context for _, context in batches]
    for (tokens, _), (texts, _) in zip(encoded, batches, strict=True):
        assert tokens.tolist() == tokens_of(saved.tokenizer, texts)
    assert len(started) <= (0 if num_workers == 1 else num_workers)
    assert all(process.returncode is not None for process in started)


def test_each_worker_gets_its_batches_in_order(saved, monkeypatch):
    """A worker names only its first refusal, which must be the first one of its batches."""
    users: dict[int, set[int]] = {}

    def pack(self: Any, batch: Batch) -> packing.Packed:
        users.setdefault(id(self), set()).add(threading.get_ident())
        return packing.Packed(tokens=dict.fromkeys(SPLITS, b""))

    monkeypatch.setattr(workers._Worker, "pack", pack)
    assert len(list(saved.encoded(iter(some_batches(50)), 3))) == 50
    threads = [thread for threads in users.values() for thread in threads]
    assert len(threads) == len(users) == len(set(threads))  # each of which takes them in order


@pytest.mark.parametrize("number", [0, 1])
def test_less_than_two_batches_are_not_worth_a_process(saved, started, number):
    assert len(list(saved.encoded(iter(some_batches(number)), 2))) == number
    assert not started


def test_only_a_few_batches_are_read_ahead_and_no_process_is_left(saved, started):
    """A source may be larger than the memory."""
    read: list[int] = []

    def endless() -> Iterator[Texts]:
        for number in count():
            read.append(number)
            yield ["text"], number

    encoded = saved.encoded(endless(), 2)
    for expected in range(6):
        assert next(encoded)[1] == expected
        assert len(read) <= expected + 2 * BATCHES_PER_WORKER
    encoded.close()
    assert started and all(process.returncode is not None for process in started)


def test_no_process_is_left_when_the_source_fails(saved, started):
    def failing() -> Iterator[Texts]:
        yield from some_batches(6)
        raise KeyError

    with pytest.raises(KeyError):
        list(saved.encoded(failing(), 2))
    assert started and all(process.returncode is not None for process in started)


def test_a_process_that_is_killed_is_one_line(saved, started):
    """It is killed while others work, and none of them is left."""

    def killing() -> Iterator[Texts]:
        for number, batch in enumerate(some_batches(40)):
            if number == 8:
                started[0].kill()
            yield batch

    with pytest.raises(
        StorageError, match=r"a tokenizing process ended with exit code -9.*lower --data\.workers"
    ) as caught:
        list(saved.encoded(killing(), 2))
    assert "\n" not in str(caught.value)
    assert all(process.returncode is not None for process in started)


def test_a_tokenizer_that_workers_cannot_load_is_one_line(saved):
    saved.file.write_text("{")
    match = r"a tokenizing process ended with exit code 1: .*DataError: .*not a tokenizer\.json"
    with pytest.raises(StorageError, match=match) as caught:
        list(saved.encoded(iter(some_batches(4)), 2))
    assert "memory" not in str(caught.value) and "\n" not in str(caught.value)


def test_files_in_the_working_directory_are_not_imported(saved, tmp_path, monkeypatch):
    for name in ("queue", "json", "types", "random", "token", "struct", "numpy", "tokenizers"):
        (tmp_path / f"{name}.py").write_text("raise ImportError")
    monkeypatch.chdir(tmp_path)
    batches = some_batches(6)
    encoded = [tokens.tolist() for tokens, _ in saved.encoded(iter(batches), 2)]
    assert encoded == [tokens_of(saved.tokenizer, texts) for texts, _ in batches]


def test_what_a_library_prints_is_not_taken_for_ids(saved, monkeypatch):
    noisy = (
        "from moebius.data.tokenizer import Tokenizer; load = Tokenizer.load; "
        "Tokenizer.load = staticmethod(lambda path: print('noise', flush=True) or load(path)); "
    )
    monkeypatch.setattr(
        workers, "python_command", lambda code, *words: python_command(noisy + code, *words)
    )
    batches = some_batches(6)
    encoded = [tokens.tolist() for tokens, _ in saved.encoded(iter(batches), 2)]
    assert encoded == [tokens_of(saved.tokenizer, texts) for texts, _ in batches]


def test_a_worker_ignores_an_interrupt_and_ends_with_its_owner(saved, started):
    worker = workers._Worker(saved.file, RULES)
    first = worker.pack(batch_of(["a"]))
    (process,) = started
    process.send_signal(signal.SIGINT)
    assert worker.pack(batch_of(["a"])) == first
    assert process.stdin
    process.stdin.close()  # as when the owner has been killed
    assert process.wait(timeout=10) == 0


@pytest.fixture
def mixed(tmp_path, monkeypatch) -> Path:
    """A folder of files of all kinds, of which some are read in several parts."""
    monkeypatch.setattr("moebius.data.line_rows.CHUNK_BYTES", 10_000)
    monkeypatch.setattr("moebius.data.text_files.LONGEST_DOCUMENT", 10_000)
    monkeypatch.setattr("moebius.data.ingest.BATCH_BYTES", 10_000)
    monkeypatch.setattr(sources, "SMALL_FILE", 10_000)
    folder = tmp_path / "mixed"
    folder.mkdir()
    rows = [json.dumps({"text": f"row {n} \u00e9 " * 40}) + "\n" for n in range(120)]
    (folder / "a.jsonl").write_text("".join(rows))
    (folder / "b.txt").write_text("a line of a book\n" * 9_000)
    (folder / "c.jsonl.gz").write_bytes(gzip.compress("".join(rows[:20]).encode()))
    (folder / "d.csv").write_text("id,text\n" + "".join(f"{n},cell {n}\n" for n in range(100)))
    (folder / "e.json").write_text(json.dumps([{"text": f"object {n}"} for n in range(100)]))
    for number in range(40):
        (folder / f"f{number}.txt").write_text(f"file {number}")
    return folder


def prepared(source: Path, cache: Path, num_workers: int, **settings: Any) -> dict[str, bytes]:
    """Return the files that were prepared, by name."""
    config = DataConfig(
        source=str(source), tokenizer="bytes", cache=str(cache), workers=num_workers, **settings
    )
    folder = prepare(config, 257).folder
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("kept_bytes", [packing.KEPT_BYTES, 1000])
def test_files_that_workers_read_become_the_same_bytes(mixed, tmp_path, monkeypatch, kept_bytes):
    """With few bytes kept in memory, tokens of whole files wait on the disk."""
    monkeypatch.setattr(packing, "KEPT_BYTES", kept_bytes)
    expected = prepared(mixed, tmp_path / "one", 1)
    assert prepared(mixed, tmp_path / "three", 3) == expected
    shards = [f"{split}-00000.{suffix}" for split in SPLITS for suffix in ("bin", "crc")]
    assert sorted(expected) == sorted(["meta.json", "tokenizer.json", *shards])


def test_only_large_files_without_parts_are_read_by_the_owner(mixed, monkeypatch):
    (mixed / "g.json").write_text(json.dumps([{"text": "word " * 300} for _ in range(9)]))
    found: list[tuple[str, bool]] = []
    for chunk, _ in chunks(DataConfig(source=str(mixed)), Tally()):
        if chunk.origin not in [name for name, _ in found]:
            found.append((chunk.origin, isinstance(chunk.data, FilePart)))
    owned = [Path(name.partition(":")[0]).name for name, is_part in found if not is_part]
    assert set(owned) == {"g.json"}
    monkeypatch.setattr(sources, "FEWEST_WHOLE_FILES", 1)
    parts = [chunk.data for chunk, _ in chunks(DataConfig(source=str(mixed)), Tally())]
    assert all(isinstance(part, FilePart) for part in parts)


def test_a_bad_line_far_into_a_file_is_named_by_any_number_of_workers(tmp_path, monkeypatch):
    """The lines before the part of the file that a worker reads are counted."""
    monkeypatch.setattr("moebius.data.line_rows.CHUNK_BYTES", 10_000)
    monkeypatch.setattr("moebius.data.ingest.BATCH_BYTES", 10_000)
    source = tmp_path / "rows.jsonl"
    lines = [json.dumps({"text": f"row {n} " * 60}) for n in range(900)]
    lines[700] = lines[703] = lines[899] = '{"text": 3}'
    source.write_text("\n".join(lines) + "\n")
    for num_workers in (1, 2):
        cache = tmp_path / str(num_workers)
        with pytest.raises(DataError, match=r"rows\.jsonl:701: field 'text' is int, not text;"):
            prepared(source, cache, num_workers)
        meta = json.loads(prepared(source, cache, num_workers, errors="skip")["meta.json"])
        assert meta["tally"]["count"] == 3
        assert meta["tally"]["first"] == "rows.jsonl:701: field 'text' is int, not text"


def test_lines_are_counted_once_for_all_messages_about_a_source(tmp_path, monkeypatch):
    source = tmp_path / "rows.jsonl"
    monkeypatch.setattr("moebius.data.line_rows.CHUNK_BYTES", 10_000)
    good = (json.dumps({"text": f"word {n} " * 20}) + "\n" for n in range(300))
    source.write_text("".join(f"{line}bad\n" for line in good))
    counted: list[int] = []
    original = FilePart.count_lines

    def count_lines(self: FilePart) -> int:
        counted.append(self.stop)
        return original(self)

    monkeypatch.setattr(FilePart, "count_lines", count_lines)
    tally = Tally()
    config = DataConfig(source=str(source), errors="skip")
    assert len(list(documents(config, tally))) == tally.count == 300
    prepared(source, tmp_path / "cache", 1, errors="skip")
    assert len(counted) <= 3  # once for each time that the source is read


def test_a_file_that_is_gone_when_a_worker_reads_it_is_one_line(tmp_path):
    gone = Chunk(TEXT_PIECE, FilePart(str(tmp_path / "gone.txt"), 0, 10), "gone.txt")
    tokenizer = prepare_tokenizer(DataConfig(tokenizer="bytes"), 257, [])
    tokenizer.save(tmp_path / "tokenizer.json")
    batches = [(Batch([Piece(chunk)], False), 0) for chunk in (gone, gone)]
    for num_workers in (1, 2):
        with pytest.raises(StorageError, match=r"gone\.txt: No such file or directory$"):
            list(
                pack_batches(
                    iter(batches), tokenizer, RULES, tmp_path / "tokenizer.json", num_workers
                )
            )


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux can pin a process")
def test_only_cores_that_the_process_may_use_count():
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert cores() == len(allowed)
