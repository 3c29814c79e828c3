"""A folder has one owner, others are told who it is, and a killed owner leaves it free."""

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from moebius.errors import ConfigError, LostRunError
from moebius.train.ownership import Ownership, is_owned

OWNER = """
import sys, time
from pathlib import Path
from moebius.train.ownership import Ownership
owner = Ownership(Path(sys.argv[1]), print)
print("owned", flush=True)
time.sleep(60)
"""


def started(folder: Path) -> "subprocess.Popen[str]":
    """Start a process that owns a folder, and return it once it does."""
    command = [sys.executable, "-c", OWNER, str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "owned\n"
    return process


def test_a_second_process_is_told_who_owns_the_folder_until_that_one_is_killed(tmp_path: Path):
    owner = started(tmp_path)
    try:
        match = rf"^{tmp_path}: process {owner.pid} on \S+ has been training this run since 20\d\d"
        with pytest.raises(ConfigError, match=match) as refusal:
            Ownership(tmp_path, pytest.fail)
        assert refusal.value.exit_code == 2 and "\n" not in str(refusal.value)
    finally:
        owner.send_signal(signal.SIGKILL)
        owner.wait()
    assert (tmp_path / ".lock").exists()  # the file stays, the lock does not
    ownership = Ownership(tmp_path, pytest.fail)
    del ownership
    assert not list(tmp_path.iterdir())


def test_whoever_only_looks_takes_nothing_away(tmp_path: Path, monkeypatch):
    (tmp_path / ".lock").write_text("")
    with (tmp_path / ".lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)  # as another process that looks
        assert not is_owned(tmp_path)
        monkeypatch.setattr(time, "sleep", lambda _: fcntl.flock(file, fcntl.LOCK_UN))
        owner = Ownership(tmp_path, pytest.fail)
    owner.check()
    assert not is_owned(tmp_path)  # by this process, and not by another one
    assert is_taken(tmp_path)


def test_a_folder_that_is_moved_keeps_its_owner(tmp_path: Path):
    (tmp_path / "run").mkdir()
    owner = started(tmp_path / "run")
    try:
        (tmp_path / "run").rename(tmp_path / "moved")
        with pytest.raises(ConfigError, match=f"process {owner.pid} on"):
            Ownership(tmp_path / "moved", pytest.fail)
    finally:
        owner.kill()
        owner.wait()


def test_a_process_may_take_its_folder_again_and_keeps_it_until_the_last_end(tmp_path: Path):
    first = Ownership(tmp_path, pytest.fail)
    second = Ownership(tmp_path, pytest.fail)
    del first
    assert is_taken(tmp_path)
    del second
    assert not is_taken(tmp_path)


def test_a_renamed_folder_is_still_owned(tmp_path: Path):
    (tmp_path / "before").mkdir()
    owner = Ownership(tmp_path / "before", pytest.fail)
    owner.rename(tmp_path / "after")
    assert owner.folder == tmp_path / "after" and is_taken(tmp_path / "after")
    del owner
    assert not list((tmp_path / "after").iterdir())


def test_a_forked_process_is_another_process(tmp_path: Path):
    owner = Ownership(tmp_path, pytest.fail)
    assert is_taken(tmp_path)
    assert owner.folder == tmp_path and (tmp_path / ".lock").exists()


def is_taken(folder: Path) -> bool:
    """Return whether a process that is forked from this one is refused."""
    process = os.fork()
    if not process:
        code = 3
        try:
            Ownership(folder, lambda line: None)
            code = 0
        except ConfigError:
            code = 2
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    assert code in (0, 2)
    return code == 2


def test_an_owner_that_has_not_written_its_name_yet_is_another_process(tmp_path: Path):
    with (tmp_path / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="another process is training this run; wait until"):
            Ownership(tmp_path, pytest.fail)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_without_locks_there_is_a_warning_and_it_goes_on(number, tmp_path: Path, monkeypatch):
    def unsupported(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    lines: list[str] = []
    owner = Ownership(tmp_path, lines.append)
    assert owner.folder == tmp_path
    assert len(lines) == 1 and "its file system has no locks" in lines[0]


def test_other_errors_are_raised(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        Ownership(tmp_path / "gone", pytest.fail)


def lose(folder: Path, how: str) -> None:
    """Do to a folder what people do to runs that are still trained."""
    if how == "unlocked":
        (folder / ".lock").unlink()
    elif how == "locked anew":
        (folder / ".lock").unlink()
        (folder / ".lock").touch()
    elif how == "deleted":
        shutil.rmtree(folder)
    elif how == "moved":
        folder.rename(folder.with_name("elsewhere"))
    elif how == "replaced":
        folder.rename(folder.with_name("elsewhere"))
        folder.mkdir()
    elif how == "replaced by a file":
        shutil.rmtree(folder)
        folder.touch()


LOST = {
    "unlocked": r"/run/\.lock: deleted during the training, so that another process may",
    "locked anew": r"/run/\.lock: replaced during the training, so that another process may",
    "deleted": r"/run: deleted during the training; stopped without writing anything more$",
    "moved": r"/run: moved to \S+/elsewhere during the training; .*`moebius resume \S+/elsewhere`",
    "replaced": r"/run: moved to \S+/elsewhere during the training, and something else was put",
    "replaced by a file": r"/run: replaced during the training; stopped without",
}


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
@pytest.mark.parametrize(("how", "match"), LOST.items())
def test_an_owner_notices_what_happened_to_its_folder(how, match, tmp_path: Path):
    (tmp_path / "run").mkdir()
    owner = Ownership(tmp_path / "run", pytest.fail)
    owner.check()
    lose(tmp_path / "run", how)
    with pytest.raises(LostRunError, match=match) as refusal:
        owner.check()
    assert refusal.value.exit_code == 6 and "\n" not in str(refusal.value)


@pytest.mark.parametrize("how", ["unlocked", "locked anew"])
def test_a_folder_whose_lock_file_was_deleted_is_still_owned(how, tmp_path: Path):
    (tmp_path / "run").mkdir()
    owner = started(tmp_path / "run")
    try:
        lose(tmp_path / "run", how)
        with pytest.raises(ConfigError, match="another process is training this run"):
            Ownership(tmp_path / "run", pytest.fail)
    finally:
        owner.kill()
        owner.wait()
    Ownership(tmp_path / "run", pytest.fail).check()


@pytest.mark.parametrize("number", [errno.EBADF, errno.ENOLCK])
def test_where_folders_cannot_be_locked_the_file_is(number, tmp_path: Path, monkeypatch):
    flock = fcntl.flock

    def only_files(descriptor: int, operation: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink().is_dir():
            raise OSError(number, os.strerror(number))
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", only_files)
    owner = Ownership(tmp_path, pytest.fail)
    owner.check()
    assert is_taken(tmp_path)
