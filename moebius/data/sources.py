"""Documents from wherever the configuration says they are, one at a time and in the same order on any machine."""

import glob
import os
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from moebius.config import DataConfig
from moebius.data.remote import downloaded, is_remote
from moebius.data.rows import LINE_SUFFIXES, PARQUET_SUFFIXES, hugging_face_rows, json_lines, parquet_rows
from moebius.data.text_files import text_pieces
from moebius.errors import ConfigError, DataError, StorageError

STDLIB = "python-stdlib"
HUGGING_FACE = "hf:"


class Document(NamedTuple):
    """A text and where it came from: a file, with a line, row or byte if it is one of many there."""

    text: str
    origin: str


@dataclass
class Skipped:
    """Documents left out because they could not be read, and why the first was."""

    count: int = 0
    first: str = ""

    def add(self, reason: str) -> None:
        self.count += 1
        self.first = self.first or reason


def mixture(config: DataConfig) -> dict[DataConfig, float]:
    """A configuration for each source that has a weight above 0, and that weight. Raises ConfigError."""
    sources = [source.strip() for source in config.source.split(",")]
    if not all(sources) or len(set(sources)) < len(sources):
        raise ConfigError(f"data.source={config.source!r}: a source is empty, or named twice (commas separate sources)")
    weights = config.weights if isinstance(config.weights, tuple) else (config.weights,) * len(sources)
    weighted = zip(sources, weights, strict=True)
    return {replace(config, source=source, weights=1.0): weight for source, weight in weighted if weight}


def documents(config: DataConfig, skipped: Skipped | None = None) -> Iterator[Document]:
    """Every non-empty document of the source (one; `mixture` takes several apart).

    Raises DataError naming the file and place of what cannot be read (or counts it in `skipped`, as data.errors says),
    StorageError for a file that may not be opened.
    """
    skipped = Skipped() if skipped is None else skipped

    def refuse(reason: str) -> None:
        if config.errors == "stop":
            raise DataError(f"{reason}; fix it or --data.errors skip")
        skipped.add(reason)

    if _is_on_hub(config):
        found = hugging_face_rows(config.source, config.text_field, refuse)
    elif config.source == STDLIB:
        # A few tests of the standard library are files in other encodings, on purpose. They belong to Python: the user
        # can neither mend them nor learn anything from being told.
        found = _read(source_files(config), config, refuse=lambda reason: None)
    else:
        found = _read(source_files(config), config, refuse)
    yield from (Document(text, origin) for text, origin in found if text)


def source_files(config: DataConfig) -> list[Path]:
    """The local files of the source, in the order in which they are read; of a URL, their copies in the cache, downloaded now
    if need be; none for a data set on the Hugging Face hub.

    A folder stands for all files below it whatever their suffix, so that one of source code works, except hidden ones
    (.git, .venv) and, when they are read, binary ones; links to folders are not followed. Files that are named or matched
    by a glob are all read. Raises DataError if there are none, StorageError, ConfigError for a URL of an unknown kind.
    """
    if is_remote(config.source):
        return downloaded(config.source, Path(os.path.expanduser(config.cache)))  # noqa: PTH111
    if _is_on_hub(config):
        folder = Path(config.source.removeprefix(HUGGING_FACE))
        return _below(folder) if folder.is_dir() else []
    if config.source == STDLIB:
        root = Path(sysconfig.get_paths()["stdlib"])
        return [file for file in _below(root, ("site-packages", "dist-packages", "__pycache__")) if file.suffix == ".py"]
    path = Path(os.path.expanduser(config.source))  # noqa: PTH111  (Path.expanduser raises RuntimeError for ~nobody)
    if path.is_file():
        return [path]
    if path.is_dir():
        files = _below(path)
        if not files:
            raise DataError(f"data.source={config.source!r}: no files in this folder (hidden ones are not read)")
        return files
    if path.exists():
        raise DataError(f"data.source={config.source!r}: neither a file nor a folder (a device or a pipe)")
    files = [Path(name) for name in glob.glob(str(path), recursive=True)]  # noqa: PTH207  (Path.glob is never absolute)
    if not any(file.is_file() for file in files):
        raise DataError(f"data.source={config.source!r}: no such file, folder or glob")
    return sorted((file for file in files if file.is_file()), key=lambda file: file.as_posix())


def _is_on_hub(config: DataConfig) -> bool:
    return config.source.startswith(HUGGING_FACE) and not is_remote(config.source)


def _below(root: Path, leave_out: tuple[str, ...] = ()) -> list[Path]:
    def stop(error: OSError) -> None:
        raise StorageError(f"{error.filename}: {error.strerror}")  # os.walk would pass over it in silence

    files: list[Path] = []
    for folder, subfolders, names in os.walk(root, onerror=stop):
        subfolders[:] = [name for name in subfolders if not name.startswith(".") and name not in leave_out]
        files += [Path(folder, name) for name in names if not name.startswith(".")]
    # broken links and pipes are no files; the order must not depend on the file system's
    return sorted((file for file in files if file.is_file()), key=lambda file: file.relative_to(root).as_posix())


def _read(files: list[Path], config: DataConfig, refuse: Callable[[str], None]) -> Iterator[tuple[str, str]]:
    is_folder = os.path.isdir(os.path.expanduser(config.source)) or is_remote(config.source)  # noqa: PTH111, PTH112
    for file in files:
        try:
            if file.suffix.lower() in LINE_SUFFIXES:
                yield from json_lines(file, config.text_field, refuse)
            elif file.suffix.lower() in PARQUET_SUFFIXES:
                yield from parquet_rows(file, config.text_field, refuse)
            else:
                yield from text_pieces(file, refuse, is_whole_source=len(files) == 1, pass_over_binary=is_folder)
        except OSError as error:
            raise StorageError(f"{file}: {error.strerror or error}") from None
