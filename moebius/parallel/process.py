"""The process context: which of a run's processes this one is, and whether it may write."""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from moebius.errors import ConfigError, MoebiusError

SPEAKING_SECONDS = 10.0  # for the first process to say what is wrong, before a launcher ends it


@dataclass(frozen=True)
class Process:
    """One of the processes that train a model together."""

    rank: int = 0
    """Number of this process among all of them, from 0."""
    world_size: int = 1
    """Number of processes of the run, on all machines."""
    local_rank: int = 0
    """Number of this process on its machine, which is the number of its GPU."""

    @property
    def writes(self) -> bool:
        """Whether this process writes checkpoints, metrics and lines on the terminal."""
        return self.rank == 0

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Process":
        """Return the process that a launcher such as torchrun describes in the environment.

        Raises ConfigError if it describes a process that cannot exist.
        """
        if "RANK" not in environment:  # WORLD_SIZE alone may stand for something else
            return cls()
        defaults = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
        given = {name: environment.get(name) or default for name, default in defaults.items()}
        variables = " ".join(f"{name}={given[name]}" for name in defaults if name in environment)
        try:
            process = cls(*map(int, given.values()))
        except ValueError:
            raise ConfigError(
                f"the environment has {variables}: whole numbers are needed"
            ) from None
        if not (0 <= process.rank < process.world_size > process.local_rank >= 0):
            raise ConfigError(
                f"the environment has {variables}: RANK and LOCAL_RANK must be from 0 to "
                "WORLD_SIZE - 1; unset the three, or start with torchrun"
            )
        return process

    @classmethod
    def single(cls, what: str, environment: Mapping[str, str] = os.environ) -> "Process":
        """Return the only process of something that does not work with several.

        what: its name, for the error. Raises ConfigError if the environment describes more than
        one process.
        """
        process = cls.from_environment(environment)
        with process.first_speaks():
            if process.world_size > 1:
                raise ConfigError(
                    f"{process.world_size} processes were started, and {what} works "
                    "with one; start it without torchrun, or with --nproc-per-node 1"
                )
        return process

    @contextmanager
    def first_speaks(self) -> Iterator[None]:
        """Let rank 0 say what is wrong in the with block, before the processes are connected.

        A launcher ends all processes as soon as one has failed. The other ranks, which probably
        have the same error, therefore wait. One that is not ended meanwhile speaks for itself.
        """
        try:
            yield
        except MoebiusError as error:
            if not self.writes:
                time.sleep(SPEAKING_SECONDS)
                error.args = (f"rank {self.rank}: {error}", *error.args[1:])
            raise
