"""A trial of the self-test, and its result."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from moebius.errors import Interrupted


class TrialFailed(Exception):
    """Raised when a trial gives a wrong result. The message is one line of figures."""


class Trial(NamedTuple):
    """One test of this machine."""

    name: str
    run: Callable[[], str]
    """Returns one line of figures, or raises any exception if the trial fails."""
    remedy: str
    """What to do if it fails."""


@dataclass(frozen=True)
class Check:
    """The result of a trial."""

    name: str
    passed: bool
    figures: str
    """What was measured or, if the trial failed, what went wrong."""
    seconds: float
    """How long it took."""
    remedy: str
    """What to do. Empty if the trial passed."""

    def __str__(self) -> str:
        word = "ok" if self.passed else "FAILED"
        return f"{word:<7} {self.name:<26}{self.figures}  ({self.seconds:.1f} s)"


def carried_out(trial: Trial) -> Check:
    """Run a trial, and return its result. Raises Interrupted."""
    start = time.perf_counter()
    try:
        figures, passed = trial.run(), True
    except Interrupted:
        raise
    except Exception as error:  # whatever is wrong with a machine must not hide the other results
        figures, passed = _described(error), False
    seconds = time.perf_counter() - start
    return Check(trial.name, passed, figures, seconds, "" if passed else trial.remedy)


def _described(error: Exception) -> str:
    """Return an error in one line, preceded by its type unless it is one of Moebius's own."""
    text = " ".join(str(error).split())[:300]
    is_own = type(error).__module__.startswith("moebius")
    return text if is_own else f"{type(error).__name__}: {text}"
