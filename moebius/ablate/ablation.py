"""The options of an ablation, and its results. This does not import torch."""

import math
import signal
from collections.abc import Iterable
from dataclasses import dataclass, field

from moebius.ablate.comparison import Outcome
from moebius.cost.units import counted
from moebius.errors import ConfigError


@dataclass(frozen=True)
class AblateOptions:
    """What to measure, and for how long. Raises ConfigError for a value that makes no sense."""

    seconds: float = 30.0
    """Seconds for which speed is measured, for all variants together."""
    rounds: int = 0
    """Number of times that each variant is measured. 0 means as many as fit into `seconds`."""
    learn: int = 0
    """Number of steps for which the first variant is trained. The others are trained on as many
    tokens. 0 means no training, unless learn_seconds is set."""
    learn_seconds: float = 0.0
    """Seconds for which each variant is trained, instead of a number of steps."""
    seeds: int = 1
    """Number of times that each variant is trained, each time with a different seed."""

    def __post_init__(self) -> None:
        for name, lowest in (("rounds", 0), ("learn", 0), ("seeds", 1)):
            if getattr(self, name) < lowest:
                raise ConfigError(f"--{name} {getattr(self, name)}: must be at least {lowest}")
        for name in ("seconds", "learn_seconds"):
            if not 0 <= getattr(self, name) < math.inf:
                flag = f"--{name.replace('_', '-')}"
                raise ConfigError(
                    f"{flag} {getattr(self, name)}: must be a finite number of at least 0"
                )
        if self.learn and self.learn_seconds:
            raise ConfigError("--learn and --learn-seconds: only one of them can be set")
        if self.seeds > 1 and not self.learns:
            raise ConfigError(
                f"--seeds {self.seeds}: seeds are for learning; set --learn STEPS or "
                "--learn-seconds S too"
            )

    @property
    def learns(self) -> bool:
        """Whether the variants are trained, and not only timed."""
        return bool(self.learn or self.learn_seconds)


@dataclass
class Ablation:
    """The variants and their measurements."""

    options: AblateOptions
    outcomes: list[Outcome]
    """One outcome per variant. The configuration itself comes first."""
    notes: list[str] = field(default_factory=list)
    """What a reader must know about the text, and about how the figures were measured."""
    stopped_by: signal.Signals | None = None
    """The signal that ended the measurement early, if one did."""

    def add_notes(self, notes: Iterable[str]) -> None:
        """Add notes that are not there yet. Variants often share a text, and so its notes."""
        self.notes += [note for note in notes if note not in self.notes]

    @property
    def sound(self) -> list[Outcome]:
        """The outcomes of the variants that have not failed."""
        return [outcome for outcome in self.outcomes if not outcome.problem]

    @property
    def is_measured(self) -> bool:
        """Whether there is a variant, and every one that has not failed was measured."""
        return bool(self.sound) and all(outcome.rounds for outcome in self.sound)

    def cut_short(self, number: signal.Signals) -> None:
        """Keep the rounds that all variants have finished, and no learning that is incomplete."""
        self.stopped_by = number
        rounds = min((len(outcome.rounds) for outcome in self.sound), default=0)
        for outcome in self.sound:
            del outcome.rounds[rounds:]
            outcome.turns.clear()
            outcome.curves.clear()

    def stopped(self) -> str:
        """Return one line about the signal, and what was measured before it came."""
        assert self.stopped_by is not None
        if not self.is_measured:
            return f"stopped by {self.stopped_by.name} before every variant was measured once"
        rounds = len(self.sound[0].rounds)
        learning = ", without what the variants had learned" if self.options.learns else ""
        figures = f"the figures are those of {counted(rounds, 'round')}{learning}"
        return f"stopped by {self.stopped_by.name}; {figures}"
