"""The parts of chaos.py about several processes, lost terminals, and changes on resume."""

import contextlib
import json
import os
import random
import shutil
import signal
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

from flags import layered

from moebius.data import Batches

Spawn = Callable[..., int]
"""Fork a process that runs a command, as chaos.py's `spawn` does."""
Command = Callable[[Path, str], list[str]]
"""Return the command that begins or resumes the run of that name in a folder."""
Result = tuple[str, bool]
"""What happened, in words, and whether it is what must happen."""
ANSWER_SECONDS = 120.0  # for a process to begin to train


def two_owners(
    folder: Path, num_tries: int, chance: random.Random, spawn: Spawn, command: Command
) -> Result:
    """Resume a run twice at random moments.

    Exactly one of the two processes must train, the other must be refused with exit code 2, and
    the run must have one history.
    """
    one_trained = one_history = freed = 0
    for number in range(num_tries):
        run = folder / f"owned-{number}"
        _wait_for(run / "checkpoints", first := spawn(command(folder, run.name)))
        os.kill(first, signal.SIGKILL)
        os.waitpid(first, 0)
        owners = []
        for _ in range(2):
            owners.append(spawn(command(folder, run.name)))
            time.sleep(chance.choice([0, 0, chance.uniform(0, 0.3)]))
        if chance.random() < 0.3:  # the lock must die with its process
            time.sleep(chance.uniform(0, 1))
            killed = owners.pop(0)
            os.kill(killed, signal.SIGKILL)
            os.waitpid(killed, 0)
            codes = [exit_code_of(process) for process in owners]
            codes.append(exit_code_of(spawn(command(folder, run.name))))
            one_trained += codes[-1] == 0 and set(codes) <= {0, 2}
            freed += 1
        else:
            one_trained += sorted(exit_code_of(process) for process in owners) == [0, 2]
        lines = (run / "metrics.jsonl").read_text().splitlines()
        steps = [json.loads(line)["step"] for line in lines]
        one_history += steps == sorted(set(steps))
        shutil.rmtree(run)
    result = (
        f"{num_tries} tries, in {freed} of them the owner was killed: {one_trained} with one "
        f"trainer at a time, {one_history} with one history"
    )
    return (result, one_trained == one_history == num_tries)


def lost_terminals(
    folder: Path, num_tries: int, chance: random.Random, spawn: Spawn, command: Command
) -> Result:
    """Close a run's output or send it SIGHUP.

    The state must be saved: the newest checkpoint is that of the last step in metrics.jsonl, or
    later, and the exit code is that of the signal.
    """
    saved = codes = 0
    for number in range(num_tries):
        run = folder / f"lost-{number}"
        reader, writer = os.pipe()
        is_closed = number % 2 == 0
        process = spawn(
            _changed(
                command(folder, run.name), ["--train.checkpoint_every=0", "--train.log_every=1"]
            ),
            stdout=writer,
            before=lambda reader=reader: os.close(reader),  # the pipe must lose its last reader
        )
        os.close(writer)
        _wait_for(run / "metrics.jsonl", process, reader)
        _read_for(reader, chance.uniform(0, 1))
        if is_closed:
            os.close(reader)
        else:
            os.kill(process, signal.SIGHUP)
            _read_for(reader, ANSWER_SECONDS)
            os.close(reader)
        code = exit_code_of(process)
        expected = signal.SIGPIPE if is_closed else signal.SIGHUP
        codes += code in (128 + expected, -expected)
        last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"]
        names = [path.name for path in run.glob("checkpoints/step-*")]
        saved += any(int(name.removeprefix("step-")) >= last for name in names)
        shutil.rmtree(run)
    result = f"{num_tries} SIGHUPs and closed pipes: {saved} states saved, {codes} right codes"
    return (result, saved == codes == num_tries)


def changed_sizes(
    folder: Path, num_resumes: int, chance: random.Random, spawn: Spawn, command: Command
) -> Result:
    """Stop a run at random moments and resume it with another batch size.

    Every process notes the sequences that it reads, each with a checksum of its tokens. Those of
    all processes, one after another, must be the sequences of one uninterrupted run.
    """
    run, notes = folder / "resized", folder / "sequences"
    notes.unlink(missing_ok=True)
    flags = ["--train.steps=1000000", "--train.checkpoint_every=0", "--train.eval_every=0"]
    for number in range(num_resumes + 1):
        size = chance.choice([1, 2, 3, 5, 8, 13])
        changes = [*flags, f"--train.batch_size={size}"]
        arguments = _changed(command(folder, run.name), changes)
        begun = notes.stat().st_size if number else 0
        process = spawn(arguments, before=lambda: _note_sequences(notes))
        while not notes.exists() or notes.stat().st_size == begun:
            if os.waitpid(process, os.WNOHANG)[0]:
                sys.exit(f"a run with changed batch size ended early: {arguments}")
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.5))
        os.kill(process, signal.SIGTERM)
        exit_code_of(process)
    lines, whole = notes.read_text().splitlines(), folder / "sequences-of-one-run"
    steps = -(-len(lines) // 64)
    process = spawn(
        _changed(
            command(folder, "at-once"),
            layered(flags, [f"--train.steps={steps}", "--train.batch_size=64"]),
        ),
        before=lambda: _note_sequences(whole),
    )
    code = exit_code_of(process)
    expected = whole.read_text().splitlines()[: len(lines)]
    differing = sum(a != b for a, b in zip(lines, expected, strict=True))
    result = (
        f"{num_resumes} resumes with another batch size, {len(lines):,} sequences: {differing} "
        "differ from those of an uninterrupted run"
    )
    return (result, code == 0 and not differing)


def _changed(command: list[str], flags: list[str]) -> list[str]:
    """Return the command, `train CONFIG` or `resume RUN`, with some of its flags changed."""
    return [*command[:2], *layered(command[2:], flags)]


def _note_sequences(notes: Path) -> None:
    """Make this process append the number and checksum of each sequence that it reads."""
    read_batch = Batches.at

    def at(self: Batches, first_sequence: int, rank: int = 0, world_size: int = 1):
        rows = read_batch(self, first_sequence, rank, world_size)
        with notes.open("a") as file:
            for number, row in enumerate(rows, start=first_sequence):
                file.write(f"{number} {zlib.crc32(row.tobytes())}\n")
        return rows

    Batches.at = at


def _wait_for(path: Path, process: int, reader: int | None = None) -> None:
    """Wait until a process has created a file, while reading its output."""
    deadline = time.monotonic() + ANSWER_SECONDS
    while not path.exists():
        if os.waitpid(process, os.WNOHANG)[0] or time.monotonic() > deadline:
            sys.exit(f"{path}: the process did not create it")
        _read_for(reader, 0.01) if reader else time.sleep(0.01)


def _read_for(reader: int, seconds: float) -> None:
    """Read and discard what comes out of a pipe, for some time or until it ends."""
    os.set_blocking(reader, False)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(BlockingIOError):
            if not os.read(reader, 2**16):
                return
        time.sleep(0.01)


def exit_code_of(process: int) -> int:
    """Wait until the process ends, and return its exit code; minus the signal if it was killed."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
