"""Find out whether a text is one that a run is trained on, and whether it still is what it was.

A source is recognized however its name is spelled. What the run read of it is compared with what
is there now, because files may have been edited since then.
"""

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

from moebius.config import DataConfig
from moebius.data.remote import is_remote
from moebius.data.shards import SPLITS, Meta
from moebius.data.sources import inventory, on_hub
from moebius.errors import DataError, MoebiusError

Change = Literal["unchanged", "changed", "unknown"]
"""Whether the text of a source has changed since a run read it."""


class Seen(NamedTuple):
    """What a run knows of a source."""

    own: DataConfig | None
    """The run's own source that it is, or None."""
    num_files: int = 0
    """Number of files of the source, as far as it has local ones."""
    num_shared: int = 0
    """Number of these that are among the files of the run's own sources."""


def seen(source: DataConfig, own: Iterable[DataConfig]) -> Seen:
    """Return what is known of a source by the run that is trained on the sources `own`.

    Local sources are the same if they have the same files, so that another spelling, a link or a
    glob in place of a folder make no difference. Others are the same if they have the same name.
    """
    own = list(own)
    for other in own:
        if source.source == other.source:
            return Seen(other)
    if not (files := _files(source)):
        return Seen(None)
    own_files = {other: _files(other) for other in own}
    same = next((other for other, theirs in own_files.items() if theirs == files), None)
    return Seen(same, len(files), len(files & set[str]().union(*own_files.values())))


def change(before: Path | None, now: Path) -> Change:
    """Return whether the text of a source has changed since a run read it.

    before: the folder in the cache with the tokens that the run read, if it is known.
    now: the folder with the tokens of the text as it is now, made by the run's tokenizer.

    They are compared by the checksums of their shards, of the held-out and of the training text.
    """
    if before is None:
        return "unknown"
    try:
        same = _checksums(before) == _checksums(now)
    except DataError:  # deleted, damaged, or prepared by another version
        return "unknown"
    return "unchanged" if same else "changed"


def _checksums(folder: Path) -> dict[str, list[str]]:
    """Return the checksums of the shards of each split. Raises DataError."""
    splits = Meta.read(folder).splits
    return {name: [shard.sha256 for shard in splits[name].shards] for name in SPLITS}


def _files(source: DataConfig) -> set[str]:
    """Return the real paths of a source's files, as far as it is local and can be listed."""
    if is_remote(source.source) or on_hub(source):
        return set()
    with suppress(MoebiusError):
        return {os.path.realpath(file.location) for file in inventory(source).files}
    return set()
