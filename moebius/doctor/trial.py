"""A trial of the self-test, and what came of it."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from moebius.errors import Interrupted


class TrialFailed(Exception):
    """Raised when a trial gives a wrong result. The message is one line of figures."""


class Trial(NamedTuple):
    """Something that is tried on this machine."""

    name: str
    run: Callable[[], str]
    """Returns figures in one line, and raises anything if the trial fails."""
    remedy: str
    """What to do if it fails."""


@dataclass(frozen=True)
class Check:
    """What came of a trial."""

    name: str
    passed: bool
    figures: str
    """What was measured or, of a trial that failed, what went wrong."""
    seconds: float
    """How long it took."""
    remedy: str
    """What to do. Empty if the trial passed."""

    def __str__(self) -> str:
        word = "ok" if self.passed else "FAILED"
        return f"{word:<7} {self.name:<26}{self.figures}  ({self.seconds:.1f} s)"


def carried_out(trial: Trial) -> Check:
    """Run a trial, and return what came of it. Raises Interrupted."""
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
    """Return an error in one line. An error that is not Moebius's own has its type before it."""
    text = " ".join(str(error).split())[:300]
    is_own = type(error).__module__.startswith("moebius")
    return text if is_own else f"{type(error).__name__}: {text}"
