"""The record of how far a source has been ingested, so that a killed process can be continued."""

import hashlib
from dataclasses import asdict, dataclass, field
from pathlib import Path

from moebius.data.sealed import read_sealed, write_sealed
from moebius.data.shards import SPLITS, Split, file_sha256, shard_file

RECORD_FILE = "progress.json"


@dataclass
class Record:
    """The part of a source that is written to shards and synced to the disk."""

    val_fraction: float
    """Hash below which a document is held out; the record is only valid for this fraction."""
    batches: int = 0
    """Number of batches, counted from the first one of the source."""
    documents: int = 0
    """Number of documents in these batches."""
    chain: str = ""
    """Hash of the hashes of these documents, in order, and of where batches end."""
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
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return cls(val_fraction)
        is_usable = record._is_sound() and record.val_fraction == val_fraction
        return record if is_usable else cls(val_fraction)

    def is_on_disk(self, folder: Path, token_bytes: int) -> bool:
        """Return whether the folder has all files that the record counts, as long as they were.

        `token_bytes` is the number of bytes that a token takes. Raises OSError.
        """
        for name, split in self.splits.items():
            for shard in split.shards:
                if _size(folder / shard.file) != shard.tokens * token_bytes:
                    return False
                if file_sha256(folder / shard.checksums) != shard.sha256:
                    return False
            unfinished = folder / shard_file(name, len(split.shards))
            # What was written after the record is cut off later.
            if _size(unfinished) < _tokens_in_unfinished(split) * token_bytes:
                return False
        return True

    def _is_sound(self) -> bool:
        """Return whether all fields have values that a writer could have recorded."""
        counts = [self.batches, self.documents]
        for name, split in self.splits.items():
            counts += [split.tokens, split.documents, split.bytes]
            for number, shard in enumerate(split.shards):
                counts.append(shard.tokens)
                if shard.file != shard_file(name, number) or not isinstance(shard.sha256, str):
                    return False
        return (
            isinstance(self.chain, str)
            and isinstance(self.lossy, str)
            and all(type(count) is int and count >= 0 for count in counts)
            and all(_tokens_in_unfinished(split) >= 0 for split in self.splits.values())
        )

    def write(self, folder: Path) -> None:
        """Replace the folder's record with this one, in one step. Raises OSError."""
        partial = folder / f"{RECORD_FILE}.partial"
        write_sealed(partial, asdict(self))
        partial.replace(folder / RECORD_FILE)

    def add(self, num_documents: int, digest: str, lossy: str = "") -> None:
        """Count one more batch, given a hash of its documents and the first text that is lost."""
        self.batches += 1
        self.documents += num_documents
        self.lossy = self.lossy or lossy
        text = f"{self.chain}{digest}"
        self.chain = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _tokens_in_unfinished(split: Split) -> int:
    """Return the number of tokens that are not in a complete shard."""
    return split.tokens - sum(shard.tokens for shard in split.shards)


def _size(file: Path) -> int:
    """Return the bytes in a file, 0 if there is none."""
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0
