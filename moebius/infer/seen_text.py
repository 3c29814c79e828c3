"""Find out whether a text is one that a run is trained on, however its name is spelled."""

import os
from collections.abc import Iterable
from contextlib import suppress
from typing import NamedTuple

from moebius.config import DataConfig
from moebius.data.remote import is_remote
from moebius.data.sources import inventory, on_hub
from moebius.errors import MoebiusError


class Seen(NamedTuple):
    """What a run knows of a source."""

    is_own: bool
    """Whether it is one of the run's own sources."""
    num_files: int
    """Number of files of the source, as far as it has local ones."""
    num_shared: int
    """Number of these that are among the files of the run's own sources."""


def seen(source: DataConfig, own: Iterable[DataConfig]) -> Seen:
    """Return what is known of a source by the run that is trained on the sources `own`.

    Local sources are the same if they have the same files, so that another spelling, a link or a
    glob in place of a folder make no difference. Others are the same if they have the same name.
    """
    own = list(own)
    if any(source.source == other.source for other in own):
        return Seen(True, 0, 0)
    files = _files(source)
    own_files = [_files(other) for other in own] if files else []
    shared = files & set[str]().union(*own_files)
    return Seen(bool(files) and files in own_files, len(files), len(shared))


def _files(source: DataConfig) -> set[str]:
    """Return the real paths of a source's files, as far as it is local and can be listed."""
    if is_remote(source.source) or on_hub(source):
        return set()
    with suppress(MoebiusError):
        return {os.path.realpath(file.location) for file in inventory(source).files}
    return set()
