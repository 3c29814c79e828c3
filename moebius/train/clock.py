"""Measure the time spent training, not counting evaluations and checkpoints."""

import time

import torch

from moebius.hardware.device import wait


class Clock:
    """A stopwatch that starts running and waits for the device whenever it is stopped."""

    def __init__(self, device: torch.device):
        self.device = device
        self._seconds = 0.0
        self._started: float | None = time.perf_counter()

    def pause(self) -> None:
        """Wait until the device has done its queued work, and stop."""
        if self._started is not None:
            wait(self.device)
            self._seconds += time.perf_counter() - self._started
            self._started = None

    def go_on(self) -> None:
        """Start again. Does nothing if the clock is running."""
        if self._started is None:
            self._started = time.perf_counter()

    def lap(self) -> float:
        """Stop and return the seconds since the last lap."""
        self.pause()
        seconds, self._seconds = self._seconds, 0.0
        return seconds
