"""The entry point: find the command, run it, and turn errors into a line and an exit code."""

import io
import os
import select
import sys
from collections.abc import Sequence
from typing import NoReturn

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
    words = list(sys.argv[1:] if words is None else words)
    is_debugging = "--debug" in words
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A model may write characters that this terminal cannot show.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        _run([word for word in words if word != "--debug"])
        if sys.stdout:  # None if it was closed before Python started
            sys.stdout.flush()  # a closed pipe is an error here, not while Python shuts down
    except (MoebiusError, OSError, KeyboardInterrupt, RuntimeError) as error:
        if _is_stdout_closed():
            _discard_stdout()
            if isinstance(error, BrokenPipeError):
                sys.exit(CLOSED_PIPE)
        explained = _explain(error)
        if is_debugging or explained is None:
            raise
        code, message = explained
        print(f"moebius: {message}", file=sys.stderr)
        sys.exit(code)
    sys.exit(0)


def _run(words: list[str]) -> None:
    from moebius.cli.registry import command_named
    from moebius.hardware.threads import let_idle_threads_sleep

    let_idle_threads_sleep()  # before a command imports torch

    first, rest = (words[0], words[1:]) if words else ("help", [])
    if first == "--version":
        from moebius import __version__

        print(f"moebius {__version__}")
    elif first in ("help", *HELP_FLAGS):
        from moebius.cli.help import command_help, overview

        print(command_help(command_named(rest[0]), rest[1:]) if rest else overview())
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
        return error.exit_code, " ".join(str(error).split())
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        return StorageError.exit_code, f"{place}{error.strerror or error}"
    if type(error).__name__ == "OutOfMemoryError":  # torch's, without importing torch
        return ConfigError.exit_code, (
            "the GPU's memory is full; lower --train.micro_batch_size, or give "
            "--parallel.loss_chunks 8 or --parallel.activation_checkpointing selective; "
            "`moebius plan` estimates what fits"
        )
    return (INTERRUPTED, "interrupted") if isinstance(error, KeyboardInterrupt) else None


def _is_stdout_closed() -> bool:
    """Return whether the reader of stdout has gone, as after `moebius ... | head`."""
    poll = select.poll()
    try:
        poll.register(sys.stdout.fileno(), select.POLLOUT)
    except (AttributeError, OSError, ValueError):  # no stdout, or one that is not a file
        return False
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _discard_stdout() -> None:
    """Discard buffered output, because Python would fail to flush it while shutting down."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
