"""A profile: how long each component of a training step took, and what it should have cost."""

from dataclasses import dataclass

from moebius.config import Config
from moebius.cost.counts import training_flops_per_token
from moebius.cost.floor import Component, Work
from moebius.hardware.ceilings import Ceilings
from moebius.profile.measure import Measured

SMALLEST_SHARE = 0.001  # a component that takes a smaller share of the step has no row


@dataclass(frozen=True)
class Row:
    """One component of a whole step: what it should cost, and what was measured."""

    component: str
    parameters: int
    """Number of the component's parameters."""
    flops: float
    """FLOPs of a step, forward and backward."""
    bytes: float
    """The fewest bytes that a step has to move for the component."""
    floor: float
    """The longer of the seconds that the FLOPs, and that the bytes, take at the device's measured
    rates. No implementation can be faster. 0 for a component without FLOPs and bytes."""
    forward: float
    """Measured seconds in forward. For the optimizer and the data, these are all seconds."""
    backward: float
    """Measured seconds in backward."""
    waiting: float
    """Seconds in which a GPU had nothing to do before the component's kernels."""
    share: float
    """The component's seconds as a share of the step's."""

    @property
    def seconds(self) -> float:
        """All measured seconds together."""
        return self.forward + self.backward + self.waiting

    @property
    def efficiency(self) -> float:
        """The floor divided by the measured seconds. 0 for a component without a floor."""
        return self.floor / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Profile:
    """A configuration's training step, measured on a device."""

    config: Config
    device: str
    """The device in words."""
    text: str
    """The text that the steps were trained on, in words."""
    notes: tuple[str, ...]
    """Lines about what was read of the text, and what was passed over."""
    item: int
    """Bytes of one number in a matrix product."""
    has_row_for_every_choice: bool
    """Whether a token is moved once for every expert that the router could choose, even if it
    chooses fewer, because shapes are static."""
    ceilings: Ceilings
    """Measured rates of the device."""
    measured: Measured
    rows: list[Row]
    """The components, the longest first."""

    @property
    def limits(self) -> tuple[float, float]:
        """The device's FLOP/s and bytes/s, in the order of `Work.seconds`'s arguments."""
        return self.ceilings.flops, self.ceilings.bytes

    @property
    def tokens_per_second(self) -> float:
        """Training speed, without any measuring overhead."""
        return self.config.train.batch_size * self.config.train.seq_len / self.measured.seconds

    @property
    def mfu(self) -> float:
        """Model FLOPs utilization: the step's FLOP/s, divided by the measured rate of the device.

        FLOPs that activation checkpointing computes again do not count. The rate is that of large
        matrix products.
        """
        per_token = training_flops_per_token(
            self.config.model, self.config.train.seq_len, self.measured.experts_per_token
        )
        return self.tokens_per_second * per_token / self.ceilings.flops


def rows_of(expected: dict[str, Component], measured: Measured, ceilings: Ceilings) -> list[Row]:
    """Return a row for each component that takes a thousandth of the step, the longest first.

    expected: what the components should cost, by name. Components that were measured but are not
    among them get a row without a floor.
    """
    names = [*expected, *(piece.component for piece in measured.pieces)]
    rows = [
        _row(name, expected.get(name, Component(0, Work())), measured, ceilings)
        for name in dict.fromkeys(names)
    ]
    shown = [row for row in rows if row.share >= SMALLEST_SHARE]
    return sorted(shown, key=lambda row: -row.seconds)


def _row(name: str, component: Component, measured: Measured, ceilings: Ceilings) -> Row:
    passes = (component.forward, component.backward)
    work = component.forward + component.backward
    return Row(
        component=name,
        parameters=component.parameters,
        flops=work.flops,
        bytes=work.bytes,
        floor=sum(work.seconds(ceilings.flops, ceilings.bytes) for work in passes),
        forward=measured.of(name, "forward"),
        backward=measured.of(name, "backward"),
        waiting=measured.of(name, "waiting"),
        share=measured.of(name) / measured.seconds,
    )
