"""A signal outside of the training loop ends a command in one line, and leaves nothing behind."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moebius.cli.stopping import Stopped, stopping_on_signals
from moebius.data import prepare
from moebius.data.record import RECORD_FILE
from tests.cli.command_line import SECONDS, micro, refused

SIGNALS = {
    signal.SIGINT: (130, "interrupted"),
    signal.SIGTERM: (143, "stopped by SIGTERM"),
    signal.SIGHUP: (129, "stopped by SIGHUP"),
}
"""The exit code and the line of each signal."""


def prepared_module() -> Any:
    """Return the module of `prepare`, whose name the function hides in the package."""
    return sys.modules[prepare.__module__]


def names(cache: Path) -> set[str]:
    """Return what a preparation has left in the cache, apart from the hashes of the text."""
    return {path.name for path in cache.iterdir()} - {".hashes"}


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("has_record", [True, False])
def test_a_signal_while_text_is_tokenized(moebius, tmp_path, monkeypatch, number, has_record):
    def interrupted(folder: Path, *_: Any) -> None:
        if has_record:
            (folder / RECORD_FILE).write_text("{}")
        os.kill(os.getpid(), number)
        time.sleep(SECONDS)

    command = ("data", "tiny", *micro(tmp_path))
    with monkeypatch.context() as patched:
        patched.setattr(prepared_module(), "ingest", interrupted)
        code, line = SIGNALS[number]
        result = moebius(*command)
    refused(result, code, line)
    assert ("the same command continues" in result.err) == has_record
    (partial,) = names(tmp_path / "cache") or {""}
    assert partial.endswith(".partial") == has_record
    assert moebius(*command).code == 0
    assert not any(name.endswith((".partial", ".lock")) for name in names(tmp_path / "cache"))


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_while_a_tokenizer_is_trained(moebius, tmp_path, monkeypatch, number):
    command = ("train", "tiny", *micro(tmp_path, data__tokenizer="bpe", model__vocab_size=300))

    def interrupted(*_: Any) -> None:
        os.kill(os.getpid(), number)
        time.sleep(SECONDS)

    with monkeypatch.context() as patched:
        patched.setattr(prepared_module(), "prepare_tokenizer", interrupted)
        code, line = SIGNALS[number]
        refused(moebius(*command), code, line)
    assert names(tmp_path / "cache") == set()
    assert not (tmp_path / "runs").exists() or not any((tmp_path / "runs").iterdir())


def test_signals_that_are_ignored_or_handled_stay_so_and_others_are_restored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with pytest.raises(Stopped, match="SIGTERM"), stopping_on_signals():
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(SECONDS)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_second_hangup_does_not_disturb_the_cleaning_up():
    cleaned_up = False
    with pytest.raises(Stopped, match="SIGHUP"), stopping_on_signals():
        try:
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(SECONDS)
        finally:
            os.kill(os.getpid(), signal.SIGHUP)
            cleaned_up = True
    assert cleaned_up and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL


def test_a_command_can_run_in_another_thread():
    """Python allows only the main thread to handle signals."""
    failures: list[Exception] = []

    def run() -> None:
        try:
            with stopping_on_signals():
                pass
        except ValueError as failure:
            failures.append(failure)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(SECONDS)
    assert not failures


def wait_until(is_true: Callable[[], object]) -> None:
    stop = time.monotonic() + SECONDS
    while not is_true():
        assert time.monotonic() < stop
        time.sleep(0.01)


@pytest.mark.heavy
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("is_to_all", [True, False])
def test_no_worker_is_left_and_the_next_start_succeeds(tmp_path, moebius, number, is_to_all):
    """A terminal or a scheduler may send the signal to all processes, or to the command alone."""
    text = "".join(f"{n} squared is {n * n}, and halved {n / 2}\n" for n in range(20_000))
    source = tmp_path / "text"
    source.mkdir()
    for part in range(60):
        (source / f"{part}.txt").write_text(f"part {part}\n{text}")
    flags = micro(tmp_path, data__source=source, data__workers=2)
    process = subprocess.Popen(
        [sys.executable, "-m", "moebius", "data", "tiny", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: [signal.signal(each, signal.SIG_DFL) for each in SIGNALS] and None,
    )
    try:
        wait_until(lambda: any(tmp_path.glob("cache/.*.partial/*.bin")))
        tasks = Path(f"/proc/{process.pid}/task").glob("*/children")
        workers = [int(child) for task in tasks for child in task.read_text().split()]
        for each in (process.pid, *(workers if is_to_all else [])):
            os.kill(each, number)
        _, errors = process.communicate(timeout=SECONDS)
    finally:
        process.kill()
    code, line = SIGNALS[number]
    assert (process.returncode, errors) == (code, f"moebius: {line}\n")
    assert len(workers) == 2
    wait_until(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))
    assert moebius("data", "tiny", *flags).code == 0
