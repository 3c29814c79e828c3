"""Tokenize on all cores, with processes that read texts and write ids, and keep the order.

These are processes and not threads, because the word cache is written in Python. They communicate
through plain pipes, with lengths before the data, and without pickle, which could run code. If the
owner of a worker dies, the worker reads the end of its pipe and exits.
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
from tempfile import TemporaryFile
from typing import IO, TypeVar

import numpy as np

from moebius.data.child import python_command
from moebius.data.tokenizer import Tokenizer
from moebius.errors import StorageError

BATCHES_PER_WORKER = 2
"""Number of unfinished batches per worker: one is being tokenized, and one waits."""

Texts = list[str]
Ids = list[np.ndarray]
Context = TypeVar("Context")


def encode_batches(
    batches: Iterator[tuple[Texts, Context]],
    tokenizer: Tokenizer,
    tokenizer_json: Path,
    num_workers: int,
) -> Iterator[tuple[Ids, Context]]:
    """Yield the ids (uint32) of each batch's texts, with the context that came with the texts.

    The order is that of the batches, for any number of workers. `tokenizer_json` is the file from
    which the workers load the tokenizer. Raises StorageError, with what it printed, if a worker
    ends.
    """
    head = list(islice(batches, 2))
    batches = chain(head, batches)
    if num_workers == 1 or len(head) < 2:  # starting a process takes as long as a batch
        yield from ((tokenizer.encode_batch(texts), context) for texts, context in batches)
        return
    workers = [_Worker(tokenizer_json) for _ in range(num_workers)]
    idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    for worker in workers:
        idle.put(worker)

    def encode(texts: Texts) -> Ids:
        worker = idle.get()
        try:
            return worker.encode(texts)
        finally:
            idle.put(worker)

    pending: deque[tuple[Future[Ids], Context]] = deque()
    try:
        with ThreadPoolExecutor(num_workers) as threads:
            try:
                for texts, context in batches:
                    pending.append((threads.submit(encode, texts), context))
                    if len(pending) == BATCHES_PER_WORKER * num_workers:
                        future, oldest_context = pending.popleft()
                        yield future.result(), oldest_context
                while pending:
                    future, oldest_context = pending.popleft()
                    yield future.result(), oldest_context
            finally:
                threads.shutdown(wait=False, cancel_futures=True)
                for worker in workers:
                    worker.kill()  # so that an error or a signal does not wait for their batches
    finally:
        for worker in workers:
            worker.end()


class _Worker:
    """A process that tokenizes, started when it gets its first batch."""

    def __init__(self, tokenizer_json: Path):
        self._tokenizer_json = tokenizer_json
        self._errors = TemporaryFile()  # noqa: SIM115  (closed by `end`)
        self._process: subprocess.Popen[bytes] | None = None

    def encode(self, texts: Texts) -> Ids:
        self._process = self._process or self._start()
        assert self._process.stdin and self._process.stdout
        try:
            _send(self._process.stdin, [text.encode() for text in texts])
            return [np.frombuffer(ids, dtype=np.uint32) for ids in _receive(self._process.stdout)]
        except (EOFError, OSError):
            raise StorageError(self._death(self._process)) from None

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()

    def end(self) -> None:
        self.kill()
        if self._process is not None:
            self._process.communicate()
        self._errors.close()

    def _start(self) -> "subprocess.Popen[bytes]":
        environment = os.environ | {
            # One thread per process, because there are as many processes as cores.
            "TOKENIZERS_PARALLELISM": "false",
            "OPENBLAS_NUM_THREADS": "1",
        }
        code = "from moebius.data.workers import serve; serve()"
        return subprocess.Popen(
            python_command(code, str(self._tokenizer_json)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
            process_group=0,  # signals from the terminal reach the owner alone, which decides
        )

    def _death(self, process: "subprocess.Popen[bytes]") -> str:
        """Return in one line how the process ended, with the last line that it printed."""
        code = process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        last = f": {lines[-1].strip()}" if lines else ""
        is_killed = code == -signal.SIGKILL
        if is_killed or "memory" in last.lower():
            last += ", perhaps because memory ran out; lower --data.workers"
        return f"a tokenizing process ended with exit code {code}{last}"


def serve() -> None:
    """Run a worker: read texts from stdin and write their ids to stdout until stdin ends."""
    # Schedulers send SIGTERM to all processes, but only the owner decides what it does.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    ids_of_texts = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # so that what libraries print is not taken for ids
    tokenizer = Tokenizer.load(Path(sys.argv[1]))
    while True:
        try:
            texts = [text.decode() for text in _receive(sys.stdin.buffer)]
        except EOFError:
            return
        _send(ids_of_texts, [ids.tobytes() for ids in tokenizer.encode_batch(texts)])


def _send(pipe: IO[bytes], parts: list[bytes]) -> None:
    """Write the number of parts, the length of each part in bytes, and the parts."""
    pipe.write(struct.pack(f"<Q{len(parts)}Q", len(parts), *map(len, parts)))
    for part in parts:
        pipe.write(part)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> list[bytes]:
    """Return the parts that `_send` wrote. Raises EOFError if the pipe ends before them."""
    (count,) = struct.unpack("<Q", _read(pipe, 8))
    lengths = struct.unpack(f"<{count}Q", _read(pipe, 8 * count))
    return [_read(pipe, length) for length in lengths]


def _read(pipe: IO[bytes], length: int) -> bytes:
    data = pipe.read(length)
    if len(data) < length:
        raise EOFError
    return data
