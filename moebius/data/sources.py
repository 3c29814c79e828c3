"""Read documents from their sources one at a time, in the same order on any machine."""

import glob
import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from moebius.config import DataConfig
from moebius.config.paths import expanded
from moebius.data.remote import download, is_remote
from moebius.data.rows import (
    LINE_SUFFIXES,
    PARQUET_SUFFIXES,
    hugging_face_rows,
    json_lines,
    parquet_rows,
)
from moebius.data.text_files import Refuse, text_pieces
from moebius.errors import ConfigError, DataError, StorageError

STDLIB = "python-stdlib"
NOT_STDLIB = ("site-packages", "dist-packages", "__pycache__")
"""Folders inside the standard library's folder that do not belong to it."""
HUGGING_FACE = "hf:"


class Document(NamedTuple):
    """A text and where it comes from."""

    text: str
    origin: str
    """The file, and the line, row or byte offset if the file has several documents."""


@dataclass
class Skipped:
    """A count of the documents that were left out because they could not be read."""

    count: int = 0
    first: str = ""
    """Why the first such document could not be read; empty if there is none."""

    def add(self, reason: str) -> None:
        """Count one more document that could not be read, and why."""
        self.count += 1
        self.first = self.first or reason


def weighted_sources(config: DataConfig) -> dict[DataConfig, float]:
    """Return a separate configuration for each source whose weight is above 0, and that weight.

    Raises ConfigError if data.source is not a list of distinct sources.
    """
    sources = [source.strip() for source in config.source.split(",")]
    if not all(sources) or len(set(sources)) < len(sources):
        raise ConfigError(
            f"data.source={config.source!r}: a source is empty, or named twice "
            "(commas separate sources)"
        )
    weights = config.weights
    if not isinstance(weights, tuple):
        weights = (weights,) * len(sources)
    return {
        replace(config, source=source, weights=1.0): weight
        for source, weight in zip(sources, weights, strict=True)
        if weight
    }


def documents(config: DataConfig, skipped: Skipped | None = None) -> Iterator[Document]:
    """Yield every document that is not empty, for a configuration with a single source.

    If a document cannot be read, data.errors decides: either DataError is raised, naming the file
    and the place in it, or the document is counted in `skipped`. Raises StorageError if the system
    does not let a file be read.
    """
    skipped = Skipped() if skipped is None else skipped

    def refuse(reason: str) -> None:
        if config.errors == "stop":
            raise DataError(
                f"{reason}; fix it, or leave out such documents with --data.errors skip"
            )
        skipped.add(reason)

    def ignore(reason: str) -> None:
        pass

    if _is_on_hub(config):
        texts = hugging_face_rows(config.source, config.text_field, refuse)
    elif config.source == STDLIB:
        # A few tests of the standard library are files in other encodings on purpose. They belong
        # to Python: the user cannot fix them and learns nothing from a message about them.
        texts = _read(source_files(config), config, ignore)
    else:
        texts = _read(source_files(config), config, refuse)
    yield from (Document(text, origin) for text, origin in texts if text)


def source_files(config: DataConfig) -> list[Path]:
    """Return the local files of a single source, in the order in which they are read.

    - A folder stands for all files below it, whatever their suffix, so that a folder of source
      code works. Hidden files (.git, .venv) are left out, and binary files are skipped later, when
      they are read. Links to folders are not followed.
    - A glob stands for all files that match it, and the path of a single file for that file; these
      are never left out.
    - A URL is downloaded into the cache unless that has been done before, and the copies are
      returned.
    - A dataset on the Hugging Face hub has no local files.

    Raises DataError if there are no files, StorageError if they cannot be listed or downloaded,
    and ConfigError for a URL of an unknown kind.
    """
    if is_remote(config.source):
        return download(config.source, expanded(config.cache))
    if _is_on_hub(config):
        folder = Path(config.source.removeprefix(HUGGING_FACE))
        return _files_below(folder) if folder.is_dir() else []
    if config.source == STDLIB:
        root = Path(sysconfig.get_paths()["stdlib"])
        return [file for file in _files_below(root, NOT_STDLIB) if file.suffix == ".py"]
    path = expanded(config.source)
    if path.is_file():
        return [path]
    if path.is_dir():
        files = _files_below(path)
        if not files:
            raise DataError(
                f"data.source={config.source!r}: no files in this folder "
                "(hidden ones are not read)"
            )
        return files
    if path.exists():
        raise DataError(
            f"data.source={config.source!r}: neither a file nor a folder (a device or a pipe)"
        )
    # glob.glob, because Path.glob takes no absolute pattern.
    matches = map(Path, glob.glob(str(path), recursive=True))  # noqa: PTH207
    files = sorted((match for match in matches if match.is_file()), key=Path.as_posix)
    if not files:
        raise DataError(f"data.source={config.source!r}: no such file, folder or glob")
    return files


def _is_on_hub(config: DataConfig) -> bool:
    return config.source.startswith(HUGGING_FACE) and not is_remote(config.source)


def _files_below(root: Path, left_out_folders: tuple[str, ...] = ()) -> list[Path]:
    def stop(error: OSError) -> None:  # os.walk would silently pass over the folder
        raise StorageError(f"{error.filename}: {error.strerror}")

    files: list[Path] = []
    for folder, subfolders, names in os.walk(root, onerror=stop):
        subfolders[:] = [
            name
            for name in subfolders
            if not name.startswith(".") and name not in left_out_folders
        ]
        files += [Path(folder, name) for name in names if not name.startswith(".")]
    # Broken links and pipes are not files. The order must not depend on the file system's order.
    return sorted(
        (file for file in files if file.is_file()),
        key=lambda file: file.relative_to(root).as_posix(),
    )


def _read(files: list[Path], config: DataConfig, refuse: Refuse) -> Iterator[tuple[str, str]]:
    """Yield the text and origin of each document in the files; suffixes determine the format."""
    is_folder = is_remote(config.source) or expanded(config.source).is_dir()
    for file in files:
        try:
            if file.suffix.lower() in LINE_SUFFIXES:
                yield from json_lines(file, config.text_field, refuse)
            elif file.suffix.lower() in PARQUET_SUFFIXES:
                yield from parquet_rows(file, config.text_field, refuse)
            else:
                yield from text_pieces(
                    file, refuse, is_whole_source=len(files) == 1, pass_over_binary=is_folder
                )
        except OSError as error:
            raise StorageError(f"{file}: {error.strerror or error}") from None
