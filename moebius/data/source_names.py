"""Take apart the list of sources that data.source names."""

import os
import re
from collections.abc import Iterable
from dataclasses import replace
from glob import has_magic
from itertools import pairwise
from pathlib import Path

from moebius.config import DataConfig
from moebius.config.paths import expanded
from moebius.data.hub import HUGGING_FACE
from moebius.data.remote import is_remote
from moebius.errors import ConfigError, DataError

LOCAL_URL = re.compile(r"(^|,)\s*(?:file|local)://")
"""Matches the beginning of the URL of a file on this machine, which is read in place."""
LONGEST_NAME = 255
"""Most characters in the name of a file, on all common file systems."""


def weighted_sources(config: DataConfig) -> dict[DataConfig, float]:
    """Return a separate configuration for each source whose weight is above 0, and that weight.

    Commas separate sources, unless the whole text is the name of a file or folder. Raises
    ConfigError if data.source is not a list of distinct sources, and DataError if it cuts the name
    of a file or folder in two.
    """
    config = replace(config, source=LOCAL_URL.sub(r"\1", config.source))
    weights = config.weights
    if not isinstance(weights, tuple) and "," in config.source and _exists(config.source):
        return {replace(config, weights=1.0): weights}
    sources = [source.strip() for source in config.source.split(",")]
    if not all(sources) or len(set(sources)) < len(sources):
        raise ConfigError(
            f"data.source={config.source!r}: a source is empty, or named twice "
            "(commas separate sources)"
        )
    if found := _cut_in_two(config.source.split(",")):
        name, whole = found
        kind = "folder" if Path(name).is_dir() else "file"
        raise DataError(
            f"data.source={config.source!r}: commas separate sources; for the {kind} {name!r}, "
            f"write ? in place of its comma: {whole.replace(',', '?')!r}"
        )
    if not isinstance(weights, tuple):
        weights = (weights,) * len(sources)
    return {
        replace(config, source=source, weights=1.0): weight
        for source, weight in zip(sources, weights, strict=True)
        if weight
    }


def check_commas(sources: Iterable[str]) -> None:
    """Raise DataError if what follows a URL is no source, as where a comma belongs to the URL.

    A run that goes on with its text as it was prepared does not need the sources.
    """
    for before, source in pairwise(sources):
        if is_remote(before) and _is_missing(source):
            raise DataError(
                f"data.source: {source!r}: no such file or folder; commas separate sources, so in "
                f"a URL write %2C for a comma: {before}%2C{source}"
            )


def _exists(source: str) -> bool:
    if is_remote(source) or not source:
        return False
    # Unlike Path.exists, this raises no error for what is in a folder that cannot be entered.
    return os.path.exists(expanded(source))  # noqa: PTH110


def _is_missing(source: str) -> bool:
    """Return whether a source looks like the name of a file or folder, but there is none."""
    is_other = source == DataConfig.source or source.startswith(HUGGING_FACE)
    return not (is_other or is_remote(source) or has_magic(source) or _exists(source))


def _cut_in_two(parts: list[str]) -> tuple[str, str] | None:
    """Return a file or folder with a comma in its name that the list of sources cuts in two.

    The second text is as much of the list as belongs to it. A name can be that long only, so this
    takes time in proportion to the number of sources.
    """
    for start, part in enumerate(parts):
        if _exists(part.strip()):
            continue
        found, name, length = None, part.lstrip(), len(part.rpartition("/")[2])
        for stop in range(start + 1, len(parts)):
            inside, slash, below = parts[stop].partition("/")
            length += 1 + len(inside)
            if length > LONGEST_NAME:
                break
            name = f"{name},{inside}"
            if _exists(name.rstrip()):
                found = name.rstrip(), f"{name}{slash}{below}".strip()
            if slash:
                break
        if found:
            return found
    return None
