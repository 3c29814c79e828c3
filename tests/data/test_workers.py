"""Ids come back in order from any number of processes, none of which outlives its owner."""

import os
import signal
import subprocess
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from moebius.config import DataConfig
from moebius.data import workers
from moebius.data.child import python_command
from moebius.data.tokenizer import Tokenizer, prepare_tokenizer
from moebius.data.workers import BATCHES_PER_WORKER, encode_batches
from moebius.errors import StorageError
from moebius.hardware.processor import cores

Batch = tuple[list[str], int]


class Saved(NamedTuple):
    """A tokenizer, and the file that it is saved in."""

    tokenizer: Tokenizer
    file: Path

    def encoded(self, batches: Iterator[Batch], num_workers: int) -> Iterator[Any]:
        return encode_batches(batches, self.tokenizer, self.file, num_workers)


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


def some_batches(number: int) -> list[Batch]:
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
    for (ids_of_texts, _), (texts, _) in zip(encoded, batches, strict=True):
        assert [ids.tolist() for ids in ids_of_texts] == [saved.tokenizer.encode(t) for t in texts]
        assert all(ids.dtype == np.uint32 for ids in ids_of_texts)
    assert len(started) <= (0 if num_workers == 1 else num_workers)
    assert all(process.returncode is not None for process in started)


@pytest.mark.parametrize("number", [0, 1])
def test_less_than_two_batches_are_not_worth_a_process(saved, started, number):
    assert len(list(saved.encoded(iter(some_batches(number)), 2))) == number
    assert not started


def test_only_a_few_batches_are_read_ahead_and_no_process_is_left(saved, started):
    """A source may be larger than the memory."""
    read: list[int] = []

    def endless() -> Iterator[Batch]:
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
    def failing() -> Iterator[Batch]:
        yield from some_batches(6)
        raise KeyError

    with pytest.raises(KeyError):
        list(saved.encoded(failing(), 2))
    assert started and all(process.returncode is not None for process in started)


def test_a_process_that_is_killed_is_one_line(saved, started):
    """It is killed while others work, and none of them is left."""

    def killing() -> Iterator[Batch]:
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
    encoded = [ids for ids, _ in saved.encoded(iter(batches), 2)]
    assert [len(ids) for ids in encoded] == [len(texts) for texts, _ in batches]


def test_what_a_library_prints_is_not_taken_for_ids(saved, monkeypatch):
    noisy = (
        "from moebius.data.tokenizer import Tokenizer; load = Tokenizer.load; "
        "Tokenizer.load = staticmethod(lambda path: print('noise', flush=True) or load(path)); "
    )
    monkeypatch.setattr(
        workers, "python_command", lambda code, *words: python_command(noisy + code, *words)
    )
    batches = some_batches(6)
    encoded = [ids for ids, _ in saved.encoded(iter(batches), 2)]
    assert [len(ids) for ids in encoded] == [len(texts) for texts, _ in batches]


def test_a_worker_ignores_an_interrupt_and_ends_with_its_owner(saved, started):
    worker = workers._Worker(saved.file)
    assert worker.encode(["a"])[0].tolist() == saved.tokenizer.encode("a")
    (process,) = started
    process.send_signal(signal.SIGINT)
    assert worker.encode(["b"])[0].tolist() == saved.tokenizer.encode("b")
    assert process.stdin
    process.stdin.close()  # as when the owner has been killed
    assert process.wait(timeout=10) == 0


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux can pin a process")
def test_only_cores_that_the_process_may_use_count():
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert cores() == len(allowed)
