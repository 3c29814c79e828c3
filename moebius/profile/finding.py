"""A finding: a problem of a step that a change of the configuration would solve."""

from dataclasses import dataclass
from typing import Literal

from moebius.config import Config
from moebius.config.files import override
from moebius.config.flags import parse_flags

Kind = Literal["harm", "waste", "choice"]


@dataclass(frozen=True)
class Finding:
    """What is wrong with a step, the change to make, and the expected improvement."""

    title: str
    evidence: str
    """The figures that the finding is based on, in words."""
    flags: tuple[str, ...]
    """The change, as flags of the command line."""
    seconds: float
    """Predicted seconds of the step with the change."""
    kind: Kind = "waste"
    """`harm`: the model learns less. `waste`: time or memory is spent without any benefit.
    `choice`: nothing is wrong, but the setting has a price."""
    bytes: float = 0.0
    """Predicted bytes of memory that the change saves."""


def changed(config: Config, finding: Finding) -> Config:
    """Return the configuration with a finding's change. Raises ConfigError if it does not fit."""
    return override(config, parse_flags(list(finding.flags)))
