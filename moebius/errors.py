"""What can go wrong, and the exit code of each: the command line prints the message as one line and exits with it."""


class MoebiusError(Exception):
    """An error a user can act on. Its message is one line: what, where, and what to do."""

    exit_code = 1


class ConfigError(MoebiusError, ValueError):
    """A configuration that cannot be run: names the field, its value, what is allowed."""

    exit_code = 2


class DataError(MoebiusError):
    """Text, shards or a tokenizer that cannot be used: names the file and the offset."""

    exit_code = 3


class CheckpointError(MoebiusError):
    """A checkpoint that is missing, incomplete, damaged or of another model."""

    exit_code = 4


class NumericError(MoebiusError):
    """A loss or a gradient that is not finite."""

    exit_code = 5


class StorageError(MoebiusError):
    """Reading or writing failed: full disk, permission, a path in the way."""

    exit_code = 6


class Interrupted(MoebiusError):
    """A signal ended the run after its state was saved; exit code 128 + the signal's number."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.exit_code = 128 + signal_number
