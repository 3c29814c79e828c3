"""Measure the improvement that a finding's change brings, to compare it with the prediction."""

import statistics
from dataclasses import dataclass

from moebius.hardware.processor import Watch
from moebius.profile.finding import Finding, changed
from moebius.profile.result import Profile
from moebius.profile.steps import Steps


@dataclass(frozen=True)
class Verified:
    """The measured times of a step without and with the change that a finding proposes."""

    finding: Finding
    predicted: float
    """Predicted speed with the change, divided by that of the profiled step."""
    before: list[float]
    """Seconds of the profiled step, in each round."""
    after: list[float]
    """Seconds with the change, in each round, for as many tokens as the profiled step has."""
    crowding: str = ""
    """Who else used the processor meanwhile, in words. Empty if nobody did."""

    def __str__(self) -> str:
        ratios = sorted(
            before / after for before, after in zip(self.before, self.after, strict=True)
        )
        before, after = statistics.median(self.before), statistics.median(self.after)
        doubt = f"; not to be trusted: {self.crowding}" if self.crowding else ""
        return (
            f"verified   {self.finding.title}: predicted {self.predicted:.2f}x, measured "
            f"{before / after:.2f}x ({ratios[0]:.2f} to {ratios[-1]:.2f}); "
            f"{before * 1e3:.1f} -> {after * 1e3:.1f} ms{doubt}"
        )


def verify(profile: Profile, steps: Steps, finding: Finding, rounds: int = 6) -> Verified:
    """Apply the change of a profile's finding, and measure both configurations in turns."""
    config = changed(steps.config, finding)
    changed_steps = Steps(config, steps.device)
    tokens, changed_tokens = (
        each.train.batch_size * each.train.seq_len for each in (steps.config, config)
    )
    changed_steps.run(2)
    count = max(1, int(1.0 / steps.run(1)))
    before, after = [], []
    watch = Watch()
    for _ in range(rounds):
        before.append(steps.run(count))
        after.append(changed_steps.run(count) * (tokens / changed_tokens))
    crowding = watch.usage().crowding
    return Verified(
        finding,
        profile.measured.seconds / finding.seconds,
        before,
        after,
        crowding=crowding,
    )
