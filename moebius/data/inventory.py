"""List the files of a source, and find out what they are."""

import glob
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from moebius.config import DataConfig
from moebius.config.paths import expanded
from moebius.config.printable import printable_line
from moebius.cost.units import counted
from moebius.data.file_hashes import Remembered
from moebius.data.formats import Format, SourceFile, State, identify, state_of
from moebius.data.hub import HUB_NAME, HUGGING_FACE, local_data_set
from moebius.data.listing import fixed_part, folder_files, glob_files
from moebius.data.remote import download, is_remote
from moebius.data.row_syntax import CSV, JSON, JSON_LINES
from moebius.data.saved_sets import SavedSets
from moebius.data.tally import SAME_FILE, Tally
from moebius.data.text_files import NotText
from moebius.errors import ConfigError, DataError, StorageError

STDLIB = "python-stdlib"
NOT_STDLIB = ("site-packages", "dist-packages", "__pycache__")
"""Folders inside the standard library's folder that do not belong to it."""


@dataclass
class Inventory:
    """The files of a source."""

    files: list[SourceFile]
    """The files that are read, in the order in which they are."""
    tally: Tally
    """The files that are not, with the reasons."""
    remembered: Remembered
    """What is remembered of the files."""
    others: list[SourceFile]
    """Files that are not read because of what they are, or that are only other names of files."""
    hashes: list[str] | None = None
    """The SHA-256 of the contents of each file that is read, once that was asked for."""

    def content_hashes(self) -> list[str]:
        """Return the SHA-256 of the contents of each file that is read. Raises OSError."""
        if self.hashes is None:
            self.hashes = self.remembered.content_hashes(self.files, self.others)
        return self.hashes


def inventory(config: DataConfig, known: Inventory | None = None) -> Inventory:
    """Return the local files of a single source.

    - A folder stands for all files below it, whatever their suffix, so that a folder of source
      code works. Hidden files (.git, .venv) are left out. Links are followed once.
    - A glob stands for all files that match it, and the path of a single file for that file.
    - A URL is downloaded into the cache unless that has been done before, and the copies are
      returned.
    - A dataset on the Hugging Face hub has no local files.

    Files that hold no text that can be read are counted; if the source is only one such file, that
    is an error. So is a file that the system does not let be read, unless data.errors skips it.
    A file is opened to find out what it is, unless that is remembered or it is read according to
    `known`, an earlier inventory. Raises DataError if there are no files, StorageError if they
    cannot be listed or downloaded, and ConfigError for a URL of an unknown kind.
    """
    tally = Tally()
    formats = {file.location: file.format for file in known.files} if known else {}
    as_text = config.format == "text" or config.source == STDLIB
    remembered = Remembered(expanded(config.cache), config.source, as_text)
    listed = Inventory([], tally, remembered, [])
    try:
        named, saved_sets = _candidates(config, tally)
    except OSError as error:
        raise StorageError(f"{error.filename}: {error.strerror or error}") from None
    is_on_hub = on_hub(config)
    for name, path in named.items():
        if not is_on_hub and (reason := saved_sets.reason(name)):
            tally.pass_over(reason, name)
            continue
        try:
            state = state_of(path)
            # What a file of the hub is, `datasets` decides.
            format_ = Format("") if is_on_hub else formats.get(path)
            format_ = format_ or remembered.format(path, state)
            format_ = format_ or identify(path, name, as_text)
        except OSError as error:
            _leave_out(name, error, config, tally)
            continue
        file = SourceFile(path, name, format_, state)
        if is_on_hub or format_.kind:
            listed.files.append(file)
            continue
        listed.others.append(file)
        if format_.is_damaged:
            refuse_document(f"{name}: {format_.reason}", config, tally, "")
        elif config.source != STDLIB:
            tally.pass_over(format_.reason, name)
    if config.source != STDLIB:
        _leave_out_links(listed)
    if not listed.files and len(named) == 1 and tally.passed_over:
        raise DataError(f"data.source={config.source!r}: no text in it: {tally.reasons()}")
    return listed


def check_distinct(sources: Iterable[DataConfig], folders: Sequence[Path]) -> None:
    """Raise ConfigError if two sources are the same text, which would count twice."""
    names: dict[Path, str] = {}
    for single, folder in zip(sources, folders, strict=True):
        if folder in names:
            raise ConfigError(
                f"data.source: {names[folder]!r} and {single.source!r} are the same text; name it "
                "once (data.weights sets its share)"
            )
        names[folder] = single.source


def overlaps(listed: Mapping[DataConfig, Inventory]) -> Iterator[str]:
    """Yield a warning for each two sources with files in common, which may be on purpose."""
    if len(listed) < 2:
        return
    sources_of: dict[tuple[int, int], dict[str, str]] = {}
    for single, found in listed.items():
        for file in found.files:  # by their numbers, whatever links lead to them
            sources_of.setdefault(file.state[:2], {})[single.source] = file.location
    shared: dict[tuple[str, str], list[str]] = {}
    for names in sources_of.values():
        for pair in combinations(names, 2):
            shared.setdefault(pair, []).append(names[pair[0]])
    for (first, second), files in shared.items():
        yield printable_line(
            f"WARNING: {first} and {second} have {counted(len(files), 'file')} in common, "
            f"such as {min(files)}, whose text counts in both"
        )


def root_of(source: str) -> str:
    """Return the folder below which a single source has its files."""
    path = local_data_set(source) or expanded(source)
    return str(path.parent) if path.is_file() else fixed_part(str(path))


def on_hub(config: DataConfig) -> bool:
    """Return whether the source is read with `datasets`, and not as files."""
    return (
        config.source.startswith(HUGGING_FACE)
        and not is_remote(config.source)
        and local_data_set(config.source) is None
    )


def refuse_document(
    reason: str, config: DataConfig, tally: Tally, kind: str, count: int = 1
) -> None:
    """Raise DataError for documents that cannot be read, or count them."""
    if config.errors == "skip":
        return tally.add(printable_line(reason), count)
    remedies = "fix it, or leave out such documents with --data.errors skip"
    if kind in (JSON_LINES, JSON, CSV) and not isinstance(reason, NotText):
        remedies += f", or read files of {kind} as plain text with --data.format text"
    raise DataError(f"{printable_line(reason)}; {remedies}")


def _leave_out_links(listed: Inventory) -> None:
    """Leave out links to files that are read under their own names, or under another link's.

    The cache of the Hugging Face hub, for example, is a folder of files and one of links to them.
    Two hard links count as two files, since no copy of them could be told from one of two files.
    """
    names: dict[State, list[SourceFile]] = {}
    for file in listed.files:
        names.setdefault(file.state, []).append(file)
    left_out = set[str]()
    for same in names.values():
        if len(same) > 1:
            links = [file.location for file in same if file.path.is_symlink()]
            left_out.update(links if len(links) < len(same) else links[1:])
    if left_out:
        links = [file for file in listed.files if file.location in left_out]
        listed.files = [file for file in listed.files if file.location not in left_out]
        listed.others += links
        listed.tally.pass_over(SAME_FILE, links[0].name, len(links))


def _leave_out(name: str, error: OSError, config: DataConfig, tally: Tally) -> None:
    """Count a file that the system does not let be read, or raise StorageError."""
    reason = printable_line(f"{name}: {error.strerror or error}")
    if isinstance(error, FileNotFoundError):
        raise StorageError(f"{reason}; it was there when the files were listed")
    if config.errors == "skip":
        return tally.add(reason)
    raise StorageError(
        f"{reason}; make it readable, or leave out such files with --data.errors skip"
    )


def _candidates(config: DataConfig, tally: Tally) -> tuple[dict[str, str], SavedSets]:
    """Return all files that a source names, by name, and what is known of saved data sets."""
    source = config.source
    if is_remote(source):
        copies = download(source, expanded(config.cache), tally)
        return {name: str(copy) for name, copy in copies.items()}, SavedSets("", copies)
    if on_hub(config):
        folder = Path(source.removeprefix(HUGGING_FACE).partition(":")[0])
        files = folder_files(folder, tally) if folder.is_dir() else []
        return dict(zip(files, files, strict=True)), SavedSets(str(folder))
    path = local_data_set(source) or expanded(source)
    beginning = str(path)  # of the source, a folder unless it is one file
    if source == STDLIB:
        root = Path(sysconfig.get_paths()["stdlib"])
        listed = folder_files(root, Tally(), NOT_STDLIB)
        files = [file for file in listed if file.endswith(".py")]
    elif path.is_file():
        files = [str(path)]
    elif path.is_dir():
        files = folder_files(path, tally)
        if not files:
            other = f"; there are {tally.reasons()}" if tally.passed_over else ""
            raise DataError(
                f"data.source={source!r}: no files in this folder (hidden ones are not read)"
                f"{other}"
            )
    elif path.exists():
        raise DataError(
            f"data.source={source!r}: neither a file nor a folder (a device or a pipe)"
        )
    else:
        files, beginning = glob_files(str(path), tally), fixed_part(str(path))
        if not files:
            raise DataError(
                f"data.source={source!r}: no such file, folder or glob{_hint(source, tally)}"
            )
    return dict(zip(files, files, strict=True)), SavedSets(beginning)


def _hint(source: str, tally: Tally) -> str:
    """Return what a source that does not exist may have meant, as the end of an error."""
    if tally.passed_over:
        return f"; passed over: {tally.reasons()}"
    suffix = Path(source).suffix
    if HUB_NAME.fullmatch(source) and not suffix and not glob.has_magic(source):
        return f"; did you mean hf:{source}, a dataset on the Hugging Face hub?"
    return ""
