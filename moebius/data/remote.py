"""Download files from URLs that fsspec knows (s3://, gs://, hf://, https://) into the cache, once.

They are downloaded whole, so that preparing the corpus reads local files only.
"""

import hashlib
import json
import re
import secrets
import shutil
import time
from pathlib import Path
from typing import Any, NamedTuple

from moebius.data.remote_files import Remote, copy_file, find, translate_errors
from moebius.data.tally import Tally
from moebius.errors import DataError, MoebiusError, StorageError

FILE_LIST = "files.json"
"""Name of the list of a download's files and their sizes."""
WEB_FOLDER = re.compile(r"https?://([^/]*|.*/)")
"""Matches URLs of web servers that are no file's."""
PAGES = (".html", ".htm", ".xhtml")
"""Ends of the names of web pages, which are read as text if they are asked for by name."""
ONE_FILE = "a source at http:// or https:// must be the URL of one file"


def is_remote(source: str) -> bool:
    """Return whether the source is a URL."""
    return "://" in source


def download(source: str, cache: Path, tally: Tally | None = None) -> dict[str, Path]:
    """Return local copies of the file, folder or glob at a URL, by their sorted remote names.

    The first call downloads them. Later calls use the copies without any network traffic;
    `outdated` says whether the remote files have changed. A copy is named after its number and the
    last part of its remote name, so a remote name cannot point outside of the cache. Folders that
    a glob matches are counted in `tally`, as local ones are.

    Raises ConfigError if a package is missing, DataError if there are no such files, one does not
    have the announced length, or a web server sends a page in place of a file, and StorageError
    if they cannot be read or stored.
    """
    if WEB_FOLDER.fullmatch(source):
        raise DataError(f"data.source={source!r}: this is no file; {ONE_FILE}")
    folder = _folder(source, cache)
    try:
        if not (folder / FILE_LIST).is_file():
            _download(source, folder)
        copies = _listed(folder)
        for copy in copies:
            if copy.reason:
                (tally or Tally()).pass_over(copy.reason, copy.name)
            elif (size := copy.path.stat().st_size) != copy.size:
                raise DataError(
                    f"{copy.path}: {size} bytes, but {copy.size} were downloaded; "
                    f"delete {folder} to download again"
                )
    except OSError as error:
        raise StorageError(
            f"{error.filename or folder}: {error.strerror or error}; "
            "set --data.cache to a folder that can be written"
        ) from None
    return {copy.name: copy.path for copy in copies if not copy.reason}


def outdated(source: str, cache: Path) -> str:
    """Return a line about copies that may not be what is at the URL now, or "" if they are.

    No contents are compared, only names, sizes and what the server says about versions, such as an
    ETag. Raises DataError if the list of the copies is damaged.
    """
    folder = _folder(source, cache)
    if not is_remote(source) or not (folder / FILE_LIST).is_file():
        return ""
    copies = {copy.name: copy for copy in _listed(folder)}
    when = time.localtime((folder / FILE_LIST).stat().st_mtime)
    copied = f"the copy that was downloaded on {time.strftime('%Y-%m-%d at %H:%M', when)}"
    try:
        there = find(source)[1]
    except MoebiusError as error:
        reason = str(error).removeprefix(f"data.source={source!r}: ")
        return f"{source}: read from {copied}; whether it has changed is not known: {reason}"
    is_same = copies.keys() == there.keys() and all(
        copy.may_still_be(there[name]) for name, copy in copies.items()
    )
    if is_same or any(copy.name == str(copy.path) for copy in copies.values()):  # an old list
        return ""
    return (
        f"WARNING: {source} has changed since, but is read from {copied}; delete {folder} to "
        "download it again"
    )


def _folder(source: str, cache: Path) -> Path:
    return cache / "downloads" / hashlib.sha256(source.encode()).hexdigest()[:20]


class _Copy(NamedTuple):
    """A file that was downloaded."""

    path: Path
    name: str
    """Its remote name."""
    size: int
    """Its size in bytes."""
    version: str = ""
    """What the server said about its version; empty if it said nothing."""
    reason: str = ""
    """Why it is not read, in which case there is no copy; empty otherwise."""

    def may_still_be(self, there: Remote) -> bool:
        """Return whether nothing speaks against this being a copy of what is there now."""
        is_new = bool(self.version and there.version) and self.version != there.version
        return not is_new and (self.reason != "" or there.size in (None, self.size))


def _listed(folder: Path) -> list[_Copy]:
    """Return the files in the folder, from its list.

    Lists of earlier versions have sizes without remote names; the numbered names are used then.
    """
    try:
        values = json.loads((folder / FILE_LIST).read_bytes())
        return [
            _Copy(folder / Path(name).name, str(folder / Path(name).name), value)
            if isinstance(value, int)
            else _Copy(
                folder / Path(name).name,
                str(value["name"]),
                int(value["size"]),
                str(value.get("version", "")),
                str(value.get("reason", "")),
            )
            for name, value in values.items()
        ]
    except (ValueError, TypeError, AttributeError, KeyError):
        raise DataError(
            f"{folder / FILE_LIST}: damaged; delete {folder} to download again"
        ) from None


def _download(source: str, folder: Path) -> None:
    """Download into a temporary folder and rename it to `folder`, which is thus never partial."""
    system, there = find(source)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.{secrets.token_hex(8)}.partial")
    try:
        partial.mkdir()
        listed: dict[str, dict[str, Any]] = {}
        files = {name: remote for name, remote in there.items() if not remote.reason}
        for number, (name, remote) in enumerate(files.items()):
            copy = partial / f"{number:06d}-{name.rstrip('/').rpartition('/')[2] or 'file'}"
            info = translate_errors(source, lambda name=name: system.info(name))
            if "html" in str(info.get("mimetype")) and not name.lower().endswith(PAGES):
                raise DataError(
                    f"data.source={source!r}: the server sends a page of HTML for it, such as the "
                    f"list of a folder; {ONE_FILE}"
                )
            copy_file(source, system, name, copy)
            size, announced = copy.stat().st_size, info.get("size")
            if announced is not None and size != announced:
                raise DataError(
                    f"data.source={source!r}: {name}: {size} bytes came, "
                    f"but {announced} were announced"
                )
            listed[copy.name] = {"name": name, "size": size, "version": remote.version}
        for number, (name, remote) in enumerate(there.items()):
            if remote.reason:
                listed[f"-{number}"] = {"name": name, "size": 0, "reason": remote.reason}
        (partial / FILE_LIST).write_text(json.dumps(listed), encoding="utf-8")
        try:
            partial.rename(folder)
        except OSError:
            if not (folder / FILE_LIST).is_file():  # unless another process was faster
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
