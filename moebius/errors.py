"""Everything that can go wrong, and the exit code of each kind.

The command line prints the message of a `MoebiusError` as one line and exits with its code.
"""


class MoebiusError(Exception):
    """An error that a user can act on.

    Its message is one line: what is wrong, where, and what to do.
    """

    exit_code = 1


class ConfigError(MoebiusError, ValueError):
    """A configuration that cannot be run. The message names the setting and what is allowed."""

    exit_code = 2


class DataError(MoebiusError):
    """Text, shards or a tokenizer that cannot be used. The message names the file and place."""

    exit_code = 3


class CheckpointError(MoebiusError):
    """A checkpoint that is missing, incomplete, damaged or from a different model."""

    exit_code = 4


class ForeignCheckpointError(CheckpointError):
    """An intact checkpoint of another model, text, optimizer or format.

    A damaged checkpoint is passed over for an older one; this one never is, because the older one
    would hide a mistake.
    """


class NumericError(MoebiusError):
    """A loss or a gradient that is not finite, or a result that is wrong."""

    exit_code = 5


class StorageError(MoebiusError):
    """A file that cannot be read or written: full disk, permission, something in the way."""

    exit_code = 6


class LostRunError(StorageError):
    """A run's directory was moved, deleted or replaced, or its lock was, while it was trained."""


class PeerError(MoebiusError):
    """Another process of the run has ended, or does not answer."""

    exit_code = 7


class Interrupted(MoebiusError):
    """A signal ended the run after its state was saved."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.exit_code = 128 + signal_number


def one_line(error: BaseException) -> str:
    """Return an error's message in one line, or the name of its class if it has none."""
    return " ".join(str(error).split()) or type(error).__name__
