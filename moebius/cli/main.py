"""The entry point: find the command, run it, and turn errors into a line and an exit code."""

import errno
import io
import os
import select
import sys
from collections.abc import Sequence
from typing import NoReturn

from moebius.cli.output import discard_unwritable, finish
from moebius.cli.stopping import Stopped, stopping_on_signals
from moebius.config.printable import complain
from moebius.errors import ConfigError, MoebiusError, StorageError

CLOSED_PIPE = 128 + 13  # as if ended by SIGPIPE, which is 13 wherever it exists
INTERRUPTED = 128 + 2
HELP_FLAGS = ("-h", "--help")


def main(words: Sequence[str] | None = None) -> NoReturn:
    """Run the command in `words` (by default, the words after `moebius`), and exit.

    The exit code is 0, or that of the error, which is printed as one line on stderr. With
    `--debug` the error is raised instead, so that its traceback is shown. A bug in Moebius itself
    is raised either way.
    """
    if words is None:
        # Processes that libraries start must not import from the working directory either.
        os.environ["PYTHONSAFEPATH"] = "1"
    words = list(sys.argv[1:] if words is None else words)
    is_debugging = "--debug" in words
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A model may write characters that this terminal cannot show.
        sys.stdout.reconfigure(errors="backslashreplace")
    if sys.stdout is None:
        complain("stdout is closed, so the output would be lost; `> FILE` keeps it in a file")
        _end(StorageError.exit_code)
    try:
        with stopping_on_signals():
            _run([word for word in words if word != "--debug"])
            finish()
    except (MoebiusError, OSError, KeyboardInterrupt, RuntimeError, MemoryError) as error:
        is_closed = _is_stdout_closed()
        discard_unwritable(sys.stdout)
        if is_closed and _is_output_error(error):
            _end(CLOSED_PIPE)
        explained = _explain(error)
        if is_debugging or explained is None:
            raise
        code, line = _with_notes(error, *explained)
        complain(line)
        _end(code)
    _end(0)


def _end(code: int) -> NoReturn:
    discard_unwritable(sys.stderr)
    sys.exit(code)


def _run(words: list[str]) -> None:
    from moebius.cli.registry import command_named

    first, rest = (words[0], words[1:]) if words else ("help", [])
    if first == "--version":
        from moebius import __version__

        print(f"moebius {__version__}")
    elif first in ("help", *HELP_FLAGS):
        from moebius.cli.help import command_help, overview

        topics = [word for word in rest if word not in ("help", *HELP_FLAGS)]
        print(command_help(command_named(topics[0]), topics[1:]) if topics else overview())
    elif any(flag in rest for flag in HELP_FLAGS):
        from moebius.cli.help import command_help

        others = [word for word in rest if word not in HELP_FLAGS]
        print(command_help(command_named(first), others))
    else:
        from moebius.cli.parse import parse

        command = command_named(first)
        command.run(parse(command, rest))


def _explain(error: BaseException) -> tuple[int, str] | None:
    """Return the exit code and the line for an error, or None for a bug in Moebius itself."""
    if isinstance(error, MoebiusError):
        return error.exit_code, str(error)
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        return StorageError.exit_code, f"{place}{error.strerror or error}"
    if full := _full_memory(error):
        return ConfigError.exit_code, (
            f"{full} is full; lower --train.micro_batch_size, or give "
            "--parallel.loss_chunks 8 or --parallel.activation_checkpointing selective; "
            "`moebius plan` estimates what fits"
        )
    if isinstance(error, Stopped):
        return error.exit_code, str(error)
    return (INTERRUPTED, "interrupted") if isinstance(error, KeyboardInterrupt) else None


def _full_memory(error: BaseException) -> str:
    """Return in words which memory is full, or "" if the error says nothing of the kind."""
    if type(error).__name__ == "OutOfMemoryError":  # torch's, without importing torch
        return "the GPU's memory"
    is_on_cpu = isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error)
    return "this machine's memory" if is_on_cpu else ""


def _with_notes(error: BaseException, code: int, message: str) -> tuple[int, str]:
    """Return the exit code and the line, with whatever else went wrong.

    An error that was raised while another one ended the run, as by closing a file on a full disk,
    comes second, and the exit code is that of the first.
    """
    parts = [message, *getattr(error, "__notes__", [])]
    first = error.__context__
    if isinstance(first, MoebiusError | KeyboardInterrupt) and not error.__suppress_context__:
        explained = _explain(first)
        assert explained is not None  # both kinds have a line
        code, parts = explained[0], [explained[1], *getattr(first, "__notes__", []), *parts]
    return code, "; ".join(dict.fromkeys(" ".join(part.split()) for part in parts))


def _is_stdout_closed() -> bool:
    """Return whether the reader of stdout has gone, as after `moebius ... | head`."""
    poll = select.poll()
    try:
        poll.register(sys.stdout.fileno(), select.POLLOUT)
    except (AttributeError, OSError, ValueError):  # no stdout, or one that is not a file
        return False
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _is_output_error(error: BaseException) -> bool:
    """Return whether the error comes from writing to a closed pipe or terminal.

    It may have become another error on its way here, because all files' errors are OSErrors.
    """
    origin = error
    while origin.__context__ is not None and not isinstance(origin, OSError):
        origin = origin.__context__
    return isinstance(origin, OSError) and origin.errno in (errno.EPIPE, errno.EIO)


if __name__ == "__main__":
    main()
