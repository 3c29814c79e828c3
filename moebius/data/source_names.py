"""Take apart the list of sources that data.source names."""

import os
from dataclasses import replace
from pathlib import Path

from moebius.config import DataConfig
from moebius.config.paths import expanded
from moebius.data.remote import is_remote
from moebius.errors import ConfigError, DataError

LONGEST_NAME = 255
"""Most characters in the name of a file, on all common file systems."""


def weighted_sources(config: DataConfig) -> dict[DataConfig, float]:
    """Return a separate configuration for each source whose weight is above 0, and that weight.

    Commas separate sources, unless the whole text is the name of a file or folder. Raises
    ConfigError if data.source is not a list of distinct sources, and DataError if it cuts the name
    of a file or folder in two.
    """
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


def _exists(source: str) -> bool:
    if is_remote(source) or not source:
        return False
    # Unlike Path.exists, this raises no error for what is in a folder that cannot be entered.
    return os.path.exists(expanded(source))  # noqa: PTH110


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
