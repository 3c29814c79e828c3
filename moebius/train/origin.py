"""Where a run comes from that did not begin with new weights: a branch, or an imported model."""

from dataclasses import asdict, dataclass, field
from typing import Any

from moebius.config.fields import plain


@dataclass(frozen=True)
class Origin:
    """The model that a run began with. run.json keeps it, and so does the run's first event."""

    how: str
    """`branched` from a checkpoint of another run, or `imported` from a stock checkpoint."""
    path: str
    """Absolute path of the run, or of the folder of the stock checkpoint."""
    step: int = 0
    """Step of the checkpoint in the run that was branched."""
    sha256: str = ""
    """SHA-256 of that checkpoint's manifest, which has the hashes of all its files."""
    upcycled: str = ""
    """How the imported dense model was made a mixture, as `--upcycle` says it."""


@dataclass(frozen=True)
class Begun:
    """The first event of a run that did not begin with new weights."""

    origin: Origin
    changed: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    """The value of each setting of the branched run that the branch has changed, and its own."""

    def to_json(self) -> dict[str, Any]:
        """Return the event as an object for events.jsonl."""
        changed = {name: plain(values) for name, values in self.changed.items()}
        origin = {name: value for name, value in asdict(self.origin).items() if value != ""}
        how = origin.pop("how")
        return {"event": how, "step": self.origin.step, "origin": origin, "changed": changed}
