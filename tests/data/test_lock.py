"""One at a time works on something, and nobody waits for a process that is gone."""

import fcntl
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from moebius.data import lock
from moebius.data.lock import exclusive_lock

WAIT_SECONDS = 10  # for something that happens at once, unless it never happens


def no_report(line: str) -> None:
    raise AssertionError(f"there was nobody to wait for: {line}")


def is_locked(path: Path) -> bool:
    """Return whether somebody who comes now has to wait."""
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def open_files() -> int:
    return len(list(Path("/dev/fd").iterdir()))


def test_the_file_is_there_only_while_it_is_locked(tmp_path):
    path = tmp_path / "new" / "folder" / "lock"
    for _ in range(2):
        with exclusive_lock(path, no_report):
            assert is_locked(path)
        assert not path.exists()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_inside_releases_it(tmp_path, error):
    path, before = tmp_path / "lock", open_files()
    with pytest.raises(error), exclusive_lock(path, no_report):
        raise error
    assert not path.exists() and open_files() == before
    with exclusive_lock(path, no_report):
        pass


def test_a_file_that_nobody_locks_is_no_obstacle(tmp_path):
    (tmp_path / "lock").touch()
    with exclusive_lock(tmp_path / "lock", no_report):
        assert is_locked(tmp_path / "lock")


def test_whoever_waits_says_so_once_and_holds_a_lock_that_others_see(tmp_path):
    """The file that it waits for is removed before it gets the lock."""
    path, waits = tmp_path / "lock", threading.Event()
    lines: list[str] = []
    found: list[bool] = []

    def report(line: str) -> None:
        lines.append(line)
        waits.set()

    def wait_for_it() -> None:
        with exclusive_lock(path, report):
            found.append(path.exists() and is_locked(path))

    waiter = threading.Thread(target=wait_for_it, daemon=True)
    with exclusive_lock(path, no_report):
        waiter.start()
        assert waits.wait(WAIT_SECONDS)
        assert not found
    waiter.join(WAIT_SECONDS)
    assert found == [True] and not path.exists()
    assert lines == [f"waiting for another process that is working on the same data ({path})"]


def test_many_that_come_and_go_are_never_inside_together(tmp_path):
    inside: list[int] = []
    most: list[int] = []

    def come_and_go(number: int) -> None:
        for _ in range(25):
            with exclusive_lock(tmp_path / "lock", lambda line: None):
                inside.append(number)
                time.sleep(0.0005)
                most.append(len(inside))
                inside.remove(number)

    before = open_files()
    threads = [threading.Thread(target=come_and_go, args=(n,), daemon=True) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_SECONDS)
    assert most == [1] * 100 and open_files() == before


def test_an_interrupted_wait_leaves_the_lock_to_its_owner(tmp_path):
    path = tmp_path / "lock"

    def interrupt(line: str) -> None:
        raise KeyboardInterrupt

    with exclusive_lock(path, no_report):
        before = open_files()
        with pytest.raises(KeyboardInterrupt), exclusive_lock(path, interrupt):
            raise AssertionError
        assert open_files() == before and is_locked(path)


HOLD = """
import importlib.util, pathlib, sys, time
spec = importlib.util.spec_from_file_location("lock", sys.argv[1])
lock = importlib.util.module_from_spec(spec)
spec.loader.exec_module(lock)
with lock.exclusive_lock(pathlib.Path(sys.argv[2]), print):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_killed_process_releases_it(tmp_path):
    path = tmp_path / "lock"
    command = [sys.executable, "-S", "-c", HOLD, lock.__file__, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout and owner.stdout.readline() == "held\n"
        lines: list[str] = []

        def kill(line: str) -> None:
            lines.append(line)
            owner.kill()

        with exclusive_lock(path, kill):
            assert is_locked(path)
    assert len(lines) == 1 and owner.returncode < 0


def test_a_folder_that_cannot_be_created_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError), exclusive_lock(tmp_path / "file" / "lock", no_report):
        raise AssertionError
