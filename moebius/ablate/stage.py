"""The processes of the variants: all alive at once, or only one of them at a time."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from moebius.ablate.comparison import Outcome
from moebius.ablate.worker import Worker, WorkerFailed


class NoRoomError(Exception):
    """Raised when a variant has run out of memory while others were alive."""


class Stage:
    """The processes of the variants. Leaving the context ends all of them."""

    def __init__(self):
        self.is_alone = False
        """Whether each variant gets a fresh process for each turn, because memory is too small for
        all of them."""
        self.workers: dict[str, Worker] = {}
        """The processes that are alive, by the name of their variant."""

    def __enter__(self) -> "Stage":
        return self

    def __exit__(self, *_: object) -> None:
        while self.workers:
            self.workers.popitem()[1].end()

    def call(self, outcomes: Sequence[Outcome]) -> None:
        """Start the processes of all variants at the same time, because imports take seconds.

        Does nothing if `is_alone` is set.
        """
        if not self.is_alone:
            for outcome in outcomes:
                self.workers[outcome.variant.name] = Worker(outcome.variant.config)

    @contextmanager
    def turn(self, outcome: Outcome) -> Iterator[Worker]:
        """Yield a variant's process for a turn.

        If it fails, the reason becomes the outcome's problem and the process ends. Raises
        NoRoomError if it ran out of memory while other variants were alive.
        """
        if self.is_alone:
            self.workers[outcome.variant.name] = Worker(outcome.variant.config)
        try:
            yield self.workers[outcome.variant.name]
        except WorkerFailed as failure:
            if failure.is_out_of_memory and len(self.workers) > 1:
                raise NoRoomError from None
            outcome.problem = str(failure)
        if self.is_alone or outcome.problem:
            self.workers.pop(outcome.variant.name).end()
