"""`moebius profile`: expected beside measured, component by component."""

import statistics
from dataclasses import dataclass

import torch

from moebius.config import Config
from moebius.model.experts import loop
from moebius.profile.ceilings import ceilings, describe
from moebius.profile.findings import Finding, changed
from moebius.profile.floor import components
from moebius.profile.measure import Steps, measure
from moebius.profile.report import Profile, rows_of
from moebius.train.step import matmul_dtype


def profile(config: Config, device: torch.device, seconds: float = 15.0) -> tuple[Profile, Steps]:
    """Measure a configuration for about `seconds` and hold it against what it should cost."""
    dtype = matmul_dtype(config.train, device)
    limits = ceilings(device, dtype)
    measured, steps = measure(config, device, seconds)
    expected = components(config, dtype.itemsize, measured.experts_per_token)
    rows = rows_of(expected, measured, limits)
    has_every_row = steps.backends.run_experts is not loop
    return Profile(config, describe(device), steps.text, dtype.itemsize, has_every_row, limits, measured, rows), steps


@dataclass(frozen=True)
class Verified:
    """A finding's change, made: seconds for the tokens of the profiled step, before and after, round by round."""

    finding: Finding
    before: list[float]
    after: list[float]

    def __str__(self) -> str:
        ratios = sorted(one / other for one, other in zip(self.before, self.after, strict=True))
        before, after = statistics.median(self.before), statistics.median(self.after)
        predicted = before / self.finding.seconds
        return (
            f"verified   {self.finding.title}: predicted {predicted:.2f}x, measured {before / after:.2f}x "
            f"({ratios[0]:.2f} to {ratios[-1]:.2f}); {before * 1e3:.1f} -> {after * 1e3:.1f} ms, predicted "
            f"{self.finding.seconds * 1e3:.1f} ({self.finding.seconds / after - 1:+.0%})"
        )


def verify(steps: Steps, finding: Finding, rounds: int = 6) -> Verified:
    """Make the change and measure both, in turns."""
    config = changed(steps.config, finding)
    other = Steps(config, steps.device)
    share = steps.config.train.batch_size * steps.config.train.seq_len / (config.train.batch_size * config.train.seq_len)
    other.run(2)
    count = max(1, int(1.0 / steps.run(1)))
    before, after = [], []
    for _ in range(rounds):
        before.append(steps.run(count))
        after.append(other.run(count) * share)
    return Verified(finding, before, after)
