"""Tests of the entry point: which command runs, and every error as one line with its exit code."""

import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from moebius import __version__, cli
from moebius.cli.registry import commands
from moebius.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    Interrupted,
    NumericError,
    StorageError,
)
from tests.cli.command_line import SECONDS, Result, refused
from tests.pipes import closed_pipe

PYTHON = [sys.executable, "-m", "moebius"]


def test_help_is_quick_and_imports_no_torch():
    seconds, shown = [], ""
    for _ in range(3):
        start = time.perf_counter()
        shown = subprocess.run(
            [*PYTHON, "--help"], capture_output=True, text=True, check=True, timeout=SECONDS
        ).stdout
        seconds.append(time.perf_counter() - start)
    print(f"moebius --help: {min(seconds):.2f} s")
    assert min(seconds) < 1.0  # it should take half a second, but this machine may be busy
    assert all(f"  {name} " in shown for name in commands())

    heavy = "{'torch', 'numpy', 'rich'}"
    code = (
        "import sys, moebius.cli as c\n"
        f"try: c.main(['--help'])\nfinally: assert not {heavy} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=SECONDS
    )
    assert done.returncode == 0 and not done.stderr


@pytest.mark.parametrize("words", [[], ["help"], ["--help"], ["-h"], ["--debug"]])
def test_the_overview_lists_every_command_with_its_summary(words, moebius):
    result = moebius(*words)
    assert result.code == 0 and not result.err
    for command in commands().values():
        assert f"  {command.name} " in result.out and command.summary in result.out
    assert all(len(line) < 100 for line in result.out.splitlines())


@pytest.mark.parametrize("words", [["help", "plan"], ["--help", "plan"], ["plan", "--help"]])
def test_all_ways_to_ask_for_a_commands_help_show_the_same(words, moebius):
    result = moebius(*words)
    assert result == moebius("plan", "-h")
    assert result.code == 0 and result.out.startswith("usage: moebius plan [CONFIG] ")


def test_the_version(moebius):
    assert moebius("--version") == Result(0, f"moebius {__version__}\n", "")


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["trian"], "unknown command 'trian'; did you mean `moebius train`? `moebius help` lists"),
        (["tran"], "did you mean `moebius train`?"),
        (["help", "profil"], "did you mean `moebius profile`?"),
        (["profil", "--help"], "did you mean `moebius profile`?"),
        (["xyz"], "unknown command 'xyz'; `moebius help` lists the commands"),
        (["standard"], "'standard': a command comes first, as in `moebius train standard`"),
        (["my.toml", "--help"], "as in `moebius train my.toml`"),
        (["--train.steps", "5", "train"], "'--train.steps': a command comes first"),
    ],
)
def test_an_unknown_command_suggests_the_nearest(words, part, moebius):
    refused(moebius(*words), 2, part)


def test_debug_shows_the_traceback():
    with pytest.raises(Exception, match="preset 'tiyn'"):
        cli.main(["train", "tiyn", "--debug"])
    done = subprocess.run(
        [*PYTHON, "--debug", "train", "tiyn"],
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    assert "Traceback" in done.stderr and done.returncode
    done = subprocess.run(
        [*PYTHON, "train", "tiyn"], capture_output=True, text=True, check=False, timeout=SECONDS
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and not done.stdout


Failing = Callable[[BaseException], list[str]]


@pytest.fixture
def failing(monkeypatch) -> Failing:
    """A function that returns the words of a command that raises an error."""

    def words(error: BaseException) -> list[str]:
        def run(_: object) -> None:
            raise error

        monkeypatch.setattr(
            "moebius.cli.train.COMMAND", dataclasses.replace(commands()["train"], run=run)
        )
        return ["train"]

    return words


def test_a_full_gpu_is_one_line(failing: Failing, moebius):
    words = failing(
        torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 20.00 GiB.\nGPU 0 has a total capacity of ..."
        )
    )
    refused(moebius(*words), 2, "memory is full", "--train.micro_batch_size")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 8.00 EiB for an array"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate"),
    ],
)
def test_a_full_memory_is_one_line(failing: Failing, moebius, error):
    refused(moebius(*failing(error)), 2, "this machine's memory is full")


def test_a_mistake_of_ours_is_not_made_into_a_line(failing: Failing, moebius):
    with pytest.raises(RuntimeError, match="shapes"):
        moebius(*failing(RuntimeError("shapes do not match")))


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ConfigError("a field is\n  wrong"), 2, "moebius: a field is wrong\n"),
        (DataError("bad text"), 3, "moebius: bad text\n"),
        (CheckpointError("damaged"), 4, "moebius: damaged\n"),
        (NumericError("not finite"), 5, "moebius: not finite\n"),
        (StorageError("full"), 6, "moebius: full\n"),
        (OSError(28, "No space left", "/a/file"), 6, "moebius: /a/file: No space left\n"),
        (BrokenPipeError(32, "Broken pipe"), 6, "moebius: Broken pipe\n"),  # not that of stdout
        (KeyboardInterrupt(), 130, "moebius: interrupted\n"),
        (Interrupted("stopped by SIGTERM", 15), 143, "moebius: stopped by SIGTERM\n"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_an_error_is_one_line_and_an_exit_code(error, code, line, failing: Failing, moebius):
    assert moebius(*failing(error)) == Result(code, "", line)
    with pytest.raises(type(error)):
        moebius(*failing(error), "--debug")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NumericError("not finite"), 5),
        (OSError(28, "full"), 6),
        (KeyboardInterrupt(), 130),
        (Interrupted("stopped", 15), 143),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_the_notes_of_an_error_are_on_its_line(error, code, failing: Failing, moebius):
    message = {6: "full", 130: "interrupted"}.get(code, str(error))
    error.add_note("step 6 could not\nbe written")
    error.add_note("there is no checkpoint yet")
    error.add_note("there is no checkpoint yet")
    line = f"moebius: {message}; step 6 could not be written; there is no checkpoint yet\n"
    assert moebius(*failing(error)) == Result(code, "", line)


def test_an_error_while_another_one_ends_the_run_does_not_hide_it(failing: Failing, moebius):
    """As when files are closed on a full disk. The exit code is that of the first."""
    first, second = NumericError("not finite"), StorageError("events.jsonl: full")
    first.add_note("the last good checkpoint is step 3")
    second.__context__ = first
    line = "moebius: not finite; the last good checkpoint is step 3; events.jsonl: full\n"
    assert moebius(*failing(second)) == Result(5, "", line)
    second.__suppress_context__ = True  # raised with `from None`: it replaces the first
    assert moebius(*failing(second)) == Result(6, "", "moebius: events.jsonl: full\n")


@pytest.mark.parametrize("words", [["config", "tiny"], ["train", "--help"], ["train", "tiyn"]])
def test_a_closed_pipe_leaves_no_traceback(words, monkeypatch, capsys):
    stream = closed_pipe()
    monkeypatch.setattr(sys, "stdout", stream)
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    stream.close()  # as Python does when it exits; nothing may be left to write
    assert ended.value.code == (2 if "tiyn" in words else 141)
    assert capsys.readouterr().err.count("\n") == (1 if "tiyn" in words else 0)


@pytest.mark.parametrize(
    "error",
    [
        ConfigError("\x1b]0;title\x07 \x9b \u202e"),
        OSError(2, "No such file", "a\x1b]0;title\x07\nb"),
        DataError("a\x85b\r\x1bc"),
    ],
)
def test_an_error_that_quotes_a_users_text_is_safe_for_a_terminal(
    error, failing: Failing, moebius
):
    err = moebius(*failing(error)).err
    assert err.count("\n") == 1 and err.rstrip("\n").isprintable()


@pytest.mark.parametrize("as_another", [True, False])
def test_a_closed_pipe_that_became_another_error_is_still_one(
    as_another, failing: Failing, monkeypatch, capsys
):
    try:
        try:
            raise BrokenPipeError(32, "Broken pipe")
        except OSError as error:
            if not as_another:
                raise
            raise StorageError(f"the cache: {error.strerror}") from None
    except (OSError, StorageError) as error:
        words = failing(error)
    stream = closed_pipe()
    monkeypatch.setattr(sys, "stdout", stream)
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    stream.close()
    assert ended.value.code == 141 and not capsys.readouterr().err


def test_an_error_that_nobody_can_read_keeps_its_exit_code(monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream := closed_pipe())
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", "tiyn"])
    stream.close()
    assert ended.value.code == 2
    command = ["sh", "-c", '"$@" 2>&-', "sh", *PYTHON, "train", "tiyn"]
    done = subprocess.run(command, capture_output=True, check=False, timeout=SECONDS)
    assert (done.returncode, done.stdout) == (2, b"")


CLOSED_STDOUT = (
    "moebius: stdout is closed, so the output would be lost; `> FILE` keeps it in a file\n"
)


@pytest.mark.parametrize(
    "words", [*([name] for name in commands()), ["--help"], ["--version"], []]
)
def test_a_command_whose_output_would_be_lost_does_not_begin(words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert (ended.value.code, capsys.readouterr().err) == (6, CLOSED_STDOUT)


@pytest.mark.parametrize(("closed", "err"), [(">&-", CLOSED_STDOUT), (">&- 2>&-", "")])
def test_a_closed_stdout_is_named_once(closed, err):
    command = ["sh", "-c", f'"$@" {closed}', "sh", *PYTHON, "config", "tiny"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS)
    assert (done.returncode, done.stderr) == (6, err)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_under_stdout_is_named(monkeypatch):
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*PYTHON, "config", "tiny"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=SECONDS,
        )
    assert (done.returncode, done.stderr) == (6, "moebius: stdout: No space left on device\n")


@pytest.mark.parametrize("is_module", [True, False])
def test_the_working_directory_is_not_importable(is_module, tmp_path):
    for name in ("queue", "random", "token", "json", "dataclasses", "difflib", "torch"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('from the working directory')")
    script = tmp_path / "bin" / "moebius"  # as pip writes it
    script.parent.mkdir()
    script.write_text("import sys\nfrom moebius.cli import main\nsys.exit(main())\n")
    command = PYTHON if is_module else [sys.executable, str(script)]
    package = str(Path(cli.__file__).parents[2])
    for words, code in ((["config", "tiny"], 0), (["train", "tiyn"], 2)):
        done = subprocess.run(
            [*command, *words],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": package},
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS,
        )
        assert done.returncode == code and "Traceback" not in done.stderr, done.stderr


def test_a_pipe_to_head_leaves_no_traceback():
    moebius = subprocess.Popen(
        [*PYTHON, "train", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert moebius.stdout and moebius.stderr
    moebius.stdout.close()
    assert (moebius.stderr.read(), moebius.wait(SECONDS)) == (b"", 141)
    moebius.stderr.close()
