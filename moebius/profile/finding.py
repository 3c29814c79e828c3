"""A finding: something that a change of the configuration would improve."""

from dataclasses import dataclass
from typing import Literal

from moebius.config import Config
from moebius.config.files import override
from moebius.config.flags import parse_flags

Kind = Literal["harm", "waste", "choice"]


@dataclass(frozen=True)
class Finding:
    """What is wrong with a step, the change to make, and what it should bring."""

    title: str
    evidence: str
    """The figures that it is based on, in words."""
    flags: tuple[str, ...]
    """The change, as flags of the command line."""
    seconds: float
    """Seconds that the step should take with the change."""
    kind: Kind = "waste"
    """`harm` is done to what the model learns. `waste` costs time or memory for nothing. A
    `choice` is not wrong, but has a price."""
    bytes: float = 0.0
    """Bytes of memory that the change should save."""


def changed(config: Config, finding: Finding) -> Config:
    """Return the configuration with a finding's change. Raises ConfigError if they do not fit."""
    return override(config, parse_flags(list(finding.flags)))
