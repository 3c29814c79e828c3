"""Tests of a variant's process and the pipe to it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from moebius.ablate.worker import Worker, WorkerFailed
from moebius.config.files import to_toml


def test_a_worker_ends_with_its_owner(few, tmp_path):
    """However the owner exits, its end of the pipe is closed."""
    (tmp_path / "config.toml").write_text(to_toml(few))
    code = """if True:
        import os, sys
        from moebius.ablate.worker import Worker
        from moebius.config.files import read_config
        worker = Worker(read_config(sys.argv[1], []))
        worker.ask("start")
        print(worker.process.pid, flush=True)
        os.kill(os.getpid(), 9)"""
    owner = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "config.toml")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert owner.returncode == -signal.SIGKILL, owner.stderr
    worker = Path(f"/proc/{int(owner.stdout)}")
    stop = time.monotonic() + 20
    while worker.exists() and (worker / "stat").read_text().split(") ")[1][0] != "Z":
        assert time.monotonic() < stop
        time.sleep(0.05)


def test_a_worker_says_what_went_wrong_in_one_line_and_goes_on(few):
    worker = Worker(few)
    try:
        with pytest.raises(WorkerFailed, match="AttributeError"):
            worker.ask("nothing_like_that")
        assert worker.ask("start")["seconds"] > 0
    finally:
        worker.end()
    with pytest.raises(ProcessLookupError):
        os.kill(worker.process.pid, 0)


def test_a_worker_that_dies_says_how(few):
    worker = Worker(few)
    try:
        worker.process.kill()
        with pytest.raises(WorkerFailed, match="SIGKILL, perhaps because memory was full"):
            worker.ask("start")
    finally:
        worker.end()


def test_files_in_the_working_directory_are_not_imported(few, tmp_path, monkeypatch):
    for name in ("queue", "json", "types", "random", "token", "tomllib", "torch"):
        (tmp_path / f"{name}.py").write_text("raise ImportError")
    monkeypatch.chdir(tmp_path)
    worker = Worker(few)
    try:
        with pytest.raises(WorkerFailed, match="AttributeError"):  # it has read the question
            worker.ask("nothing_like_that")
    finally:
        worker.end()
