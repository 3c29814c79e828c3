"""Tokenising on all cores: processes that read texts and write ids, and get their work in order.

Processes, because the word cache is Python; plain pipes with lengths in front, because nothing that runs code should travel
on them, and a worker whose owner is gone reads the end of its pipe and ends too.
"""

import os
import queue
import signal
import struct
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from pathlib import Path
from typing import IO, TypeVar

import numpy as np

from moebius.data.tokenizer import Tokenizer
from moebius.errors import StorageError

AHEAD = 2  # batches for each worker: one being tokenised, one waiting

Texts = list[str]
Ids = list[np.ndarray]
About = TypeVar("About")


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def encoded(
    batches: Iterator[tuple[Texts, About]], tokenizer: Tokenizer, file: Path, workers: int
) -> Iterator[tuple[Ids, About]]:
    """Ids (uint32) of the texts of each batch, and what came with them, in order whatever the number of workers.

    file: the tokenizer's json. Raises StorageError if a worker is killed.
    """
    head = list(islice(batches, 2))
    batches = chain(head, batches)
    if workers == 1 or len(head) < 2:  # starting a process takes as long as tokenising a batch
        yield from ((tokenizer.encode_batch(texts), about) for texts, about in batches)
        return
    pool = [_Worker(file) for _ in range(workers)]
    idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    for worker in pool:
        idle.put(worker)

    def encode(texts: Texts) -> Ids:
        worker = idle.get()
        try:
            return worker.encode(texts)
        finally:
            idle.put(worker)

    pending: deque[tuple[Future[Ids], About]] = deque()
    try:
        with ThreadPoolExecutor(workers) as threads:
            try:
                for texts, about in batches:
                    pending.append((threads.submit(encode, texts), about))
                    if len(pending) == AHEAD * workers:
                        future, first = pending.popleft()
                        yield future.result(), first
                while pending:
                    future, first = pending.popleft()
                    yield future.result(), first
            finally:
                threads.shutdown(cancel_futures=True)
    finally:
        for worker in pool:
            worker.end()


class _Worker:
    """A process that is started with its first batch."""

    def __init__(self, file: Path):
        self._file = file
        self._process: subprocess.Popen[bytes] | None = None

    def encode(self, texts: Texts) -> Ids:
        self._process = self._process or self._start()
        assert self._process.stdin and self._process.stdout
        try:
            _send(self._process.stdin, [text.encode() for text in texts])
            return [np.frombuffer(ids, dtype=np.uint32) for ids in _receive(self._process.stdout)]
        except (EOFError, OSError):
            raise StorageError(
                f"a tokenising process ended with {self._process.wait()}, perhaps for want of memory; lower --data.workers"
            ) from None

    def end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()

    def _start(self) -> "subprocess.Popen[bytes]":
        root = str(Path(__file__).parents[2])
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        # one thread each: the processes are the parallelism
        environment = os.environ | {"PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false", "OPENBLAS_NUM_THREADS": "1"}
        command = [sys.executable, "-c", "from moebius.data.workers import serve; serve()", str(self._file)]
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
        )


def serve() -> None:
    """What a worker runs: texts from stdin, ids to stdout, until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the owner decides
    tokenizer = Tokenizer.load(Path(sys.argv[1]))
    while True:
        try:
            texts = [text.decode() for text in _receive(sys.stdin.buffer)]
        except EOFError:
            return
        _send(sys.stdout.buffer, [ids.tobytes() for ids in tokenizer.encode_batch(texts)])


def _send(pipe: IO[bytes], parts: list[bytes]) -> None:
    pipe.write(struct.pack(f"<Q{len(parts)}Q", len(parts), *map(len, parts)))
    for part in parts:
        pipe.write(part)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> list[bytes]:
    (count,) = struct.unpack("<Q", _read(pipe, 8))
    lengths = struct.unpack(f"<{count}Q", _read(pipe, 8 * count))
    return [_read(pipe, length) for length in lengths]


def _read(pipe: IO[bytes], length: int) -> bytes:
    data = pipe.read(length)
    if len(data) < length:
        raise EOFError
    return data
