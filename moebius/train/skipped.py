"""Updates that were skipped because a loss or a gradient was not finite."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moebius.config import TrainConfig
from moebius.errors import NumericError, StorageError
from moebius.train.state import TrainState


@dataclass(frozen=True)
class SkippedStep:
    """The event of one skipped update."""

    step: int
    first_sequence: int
    """Number of the first sequence of the step's batch, in the order of the data."""
    last_sequence: int
    in_a_row: int
    """Number of steps in a row, up to this one, whose update was skipped."""

    def to_json(self) -> dict[str, Any]:
        """Return the event as an object for events.jsonl."""
        return {
            "event": "skipped",
            "step": self.step,
            "sequences": [self.first_sequence, self.last_sequence],
            "in_a_row": self.in_a_row,
        }

    def __str__(self) -> str:
        return (
            f"step {self.step}: loss or gradient not finite; the update was skipped "
            f"(sequences {self.first_sequence:,} to {self.last_sequence:,})"
        )


class SkippedSteps:
    """Collects on the device which updates were skipped, and reports them at the log step."""

    def __init__(self, config: TrainConfig, state: TrainState):
        self._config, self._state = config, state
        self._steps: list[tuple[int, range, Tensor]] = []  # step, its sequences, is_skipped

    def note(self, is_skipped: Tensor, batch_size: int | None = None) -> None:
        """Remember whether the latest step was skipped, without waiting for the device.

        `batch_size` is the number of the step's sequences, by default that of the configuration.
        """
        end = self._state.sequences
        sequences = range(end - (batch_size or self._config.batch_size), end)
        self._steps.append((self._state.step, sequences, is_skipped))

    def settle(self, report: Callable[[SkippedStep], None]) -> None:
        """Report each skipped step since the last call. Waits for the device.

        Updates the state's count of skipped steps in a row. Raises NumericError, after the
        reports, if the count exceeds train.max_skipped; a report that failed is a note on it.
        Otherwise raises the StorageError of that report.
        """
        steps, self._steps = self._steps, []
        if not steps:
            return
        flags = torch.stack([flag for _, _, flag in steps]).tolist()
        failures: list[StorageError] = []
        for (step, sequences, _), is_skipped in zip(steps, flags, strict=True):
            self._state.skipped = self._state.skipped + 1 if is_skipped else 0
            if is_skipped:
                try:
                    first, last = sequences[0], sequences[-1]
                    report(SkippedStep(step, first, last, self._state.skipped))
                except StorageError as failure:
                    failures.append(failure)
        if self._state.skipped > self._config.max_skipped:
            error = NumericError(
                f"step {self._state.step}: loss or gradient not finite {self._state.skipped} "
                "times in a row; lower --train.lr, or lengthen --train.warmup_steps"
            )
            for failure in failures[:1]:
                error.add_note(str(failure))
            raise error
        if failures:
            raise failures[0]

    def forget(self) -> None:
        """Drop what has not been reported, because the run returns to before those steps."""
        self._steps.clear()
