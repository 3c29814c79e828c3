"""Tokenize on all cores, with processes that read chunks and write tokens, and keep the order.

These are processes and not threads, because the word cache is written in Python. They communicate
through plain pipes, with lengths before the data, and without pickle, which could run code. If the
owner of a worker dies, the worker reads the end of its pipe and exits.
"""

import fcntl
import json
import os
import signal
import struct
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from itertools import chain, islice
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, NamedTuple, TypeVar

from moebius.data.child import python_command
from moebius.data.chunk import Chunk, FilePart
from moebius.data.formats import Format
from moebius.data.packing import Packed, Packer, Piece, Rules, error_to_wire
from moebius.data.tokenizer import Tokenizer
from moebius.errors import DataError, StorageError

BATCHES_PER_WORKER = 2
"""Number of unfinished batches per worker: one is being tokenized, and one waits."""

PIPE_BYTES = 2**20
"""Size of a pipe. The default, 64 KiB, takes three times as much of the owner's time."""

Context = TypeVar("Context")


class Batch(NamedTuple):
    """Pieces that are packed together."""

    pieces: list[Piece]
    is_known: bool
    """Whether their tokens are in the shards already, so that only their hashes are needed."""


def pack_batches(
    batches: Iterator[tuple[Batch, Context]],
    tokenizer: Tokenizer,
    rules: Rules,
    tokenizer_json: Path,
    num_workers: int,
) -> Iterator[tuple[Packed, Context]]:
    """Yield what becomes of each batch, with the context that came with it.

    The order is that of the batches, for any number of workers. `tokenizer_json` is the file from
    which the workers load the tokenizer. Raises StorageError, with what it printed, if a worker
    ends, and otherwise the errors of `Packer.pack`.
    """
    head = list(islice(batches, 2))
    batches = chain(head, batches)
    if num_workers == 1 or len(head) < 2:  # starting a process takes as long as a batch
        packer = Packer(tokenizer, rules, tokenizer_json.parent)
        yield from ((packer.pack(*batch), context) for batch, context in batches)
        return
    workers = [_Worker(tokenizer_json, rules) for _ in range(num_workers)]
    free = deque(workers)
    own = threading.local()

    def take_worker() -> None:
        # One worker for each thread, which takes batches in order, so that a worker does too: its
        # first refusal and its first loss are then the first ones of its batches.
        own.worker = free.popleft()

    def pack(batch: Batch) -> Packed:
        return own.worker.pack(batch)

    pending: deque[tuple[Future[Packed], Context]] = deque()
    try:
        with ThreadPoolExecutor(num_workers, initializer=take_worker) as threads:
            try:
                for batch, context in batches:
                    pending.append((threads.submit(pack, batch), context))
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

    def __init__(self, tokenizer_json: Path, rules: Rules):
        self._arguments = str(tokenizer_json), json.dumps(asdict(rules))
        self._errors = TemporaryFile()  # noqa: SIM115  (closed by `end`)
        self._process: subprocess.Popen[bytes] | None = None

    def pack(self, batch: Batch) -> Packed:
        self._process = self._process or self._start()
        assert self._process.stdin and self._process.stdout
        try:
            _send(self._process.stdin, _to_wire(batch))
            return Packed.from_wire(_receive(self._process.stdout))
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
        process = subprocess.Popen(
            python_command(code, *self._arguments),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
            process_group=0,  # signals from the terminal reach the owner alone, which decides
        )
        for pipe in (process.stdin, process.stdout):
            with suppress(AttributeError, OSError):  # not Linux, or too many large pipes
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)  # type: ignore
        return process

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
    """Run a worker: read batches from stdin and write their tokens to stdout until stdin ends."""
    # Schedulers send SIGTERM to all processes, but only the owner decides what it does.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    results = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # so that what libraries print is not taken for tokens
    tokenizer_json, rules = Path(sys.argv[1]), Rules.from_json(json.loads(sys.argv[2]))
    packer = Packer(Tokenizer.load(tokenizer_json), rules, tokenizer_json.parent)
    while True:
        try:
            batch = _from_wire(_receive(sys.stdin.buffer))
        except EOFError:
            return
        try:
            packed = packer.pack(*batch).to_wire()
        except (DataError, StorageError) as error:
            packed = error_to_wire(error)
        _send(results, packed)


def _to_wire(batch: Batch) -> list[bytes | bytearray]:
    """Return the places of the pieces, and the contents of those that are not in files."""
    head, contents = [], []
    for chunk, hash_, num_bytes in batch.pieces:
        part = chunk.data if isinstance(chunk.data, FilePart) else None
        if part is None:
            contents.append(chunk.raw)
        head.append((part, chunk.syntax, *chunk[2:], hash_, num_bytes))
    return [json.dumps([batch.is_known, head]).encode(), *contents]


def _from_wire(parts: list[bytes]) -> Batch:
    is_known, head = json.loads(parts[0])
    contents = iter(parts[1:])
    pieces = [
        Piece(Chunk(syntax, _part(part) if part else next(contents), *place), hash_, num_bytes)
        for part, syntax, *place, hash_, num_bytes in head
    ]
    return Batch(pieces, is_known)


def _part(values: list[Any]) -> FilePart:
    location, start, stop, format_ = values
    return FilePart(location, start, stop, Format.from_json(format_))


def _send(pipe: IO[bytes], parts: Sequence[bytes | bytearray]) -> None:
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
