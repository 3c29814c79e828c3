"""The record of how far a source has been ingested, so that a killed process can be continued."""

import hashlib
from dataclasses import asdict, dataclass, field
from pathlib import Path

from moebius.data.sealed import read_sealed, write_sealed
from moebius.data.shards import Split

RECORD_FILE = "progress.json"
SPLITS = ("train", "val")


@dataclass
class Record:
    """The part of a source that is written to shards and synced to the disk."""

    val_fraction: float
    """Hash below which a document is held out; the record is only valid for this fraction."""
    documents: int = 0
    """Number of documents, counted from the first one of the source."""
    chain: str = ""
    """Hash of the hashes of these documents, in order."""
    splits: dict[str, Split] = field(default_factory=lambda: {name: Split() for name in SPLITS})
    """The splits as they were when last synced to the disk."""
    lossy: str = ""
    """The first text that the tokenizer did not give back, and what it became, or ""."""

    @classmethod
    def read(cls, folder: Path, val_fraction: float) -> "Record":
        """Return the folder's record, or an empty one.

        It is empty if the folder has no readable record, or one for another fraction.
        """
        try:
            values = read_sealed(folder / RECORD_FILE)
            values["splits"] = {name: Split.from_json(values["splits"][name]) for name in SPLITS}
            record = cls(**values)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return cls(val_fraction)
        return record if record.val_fraction == val_fraction else cls(val_fraction)

    def write(self, folder: Path) -> None:
        """Replace the folder's record with this one, in one step. Raises OSError."""
        partial = folder / f"{RECORD_FILE}.partial"
        write_sealed(partial, asdict(self))
        partial.replace(folder / RECORD_FILE)

    def add(self, document_hash: float) -> None:
        """Count one more document."""
        self.documents += 1
        text = f"{self.chain}{document_hash}"
        self.chain = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
