"""Download files from URLs that fsspec knows (s3://, gs://, hf://, https://) into the cache, once.

They are downloaded whole, so that preparing the corpus reads local files only.
"""

import hashlib
import json
import re
import secrets
import shutil
import time
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from moebius.data.messages import is_unreachable, one_line
from moebius.data.tally import HIDDEN, NOT_ENTERED, Tally
from moebius.errors import ConfigError, DataError, MoebiusError, StorageError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

Answer = TypeVar("Answer")

FILE_LIST = "files.json"
"""Name of the list of a download's files and their sizes."""
PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "abfs": "adlfs",
    "az": "adlfs",
    "adl": "adlfs",
    "http": "aiohttp requests",
    "https": "aiohttp requests",
    "hf": "huggingface_hub",
    "sftp": "paramiko",
}
"""Packages that fsspec needs for each protocol."""
WEB_FOLDER = re.compile(r"https?://([^/]*|.*/)")
"""Matches URLs of web servers that are no file's."""
PAGES = (".html", ".htm", ".xhtml")
"""Ends of the names of web pages, which are read as text if they are asked for by name."""
ONE_FILE = "a source at http:// or https:// must be the URL of one file"
VERSIONS = (
    "ETag",
    "etag",
    "md5Hash",
    "blob_id",
    "LastModified",
    "last_modified",
    "mtime",
    "created",
)
"""What file systems of fsspec call the version of a file, the surest ones first."""
HIDDEN_NAME = re.compile(r"/\.(?!\.(?:/|$))[^/]*")
"""Matches a part of a name that begins with a dot."""
GLOB_CHARACTERS = set("*[")
CONNECT_SECONDS, READ_SECONDS = 10, 60
"""How long a web server may take to answer, and to send more."""
COPIED_BYTES = 2**22
"""Number of bytes that are copied at a time."""


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
        there = _find(source)[1]
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


class _Remote(NamedTuple):
    """A file at a URL, or something there that is not read."""

    size: int | None
    """Its size in bytes; None if the server does not say."""
    version: str
    """What the server says about its version, such as an ETag; empty if it says nothing."""
    reason: str = ""
    """Why it is not read; empty if it is."""


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

    def may_still_be(self, there: _Remote) -> bool:
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
    system, there = _find(source)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.{secrets.token_hex(8)}.partial")
    try:
        partial.mkdir()
        listed: dict[str, dict[str, Any]] = {}
        files = {name: remote for name, remote in there.items() if not remote.reason}
        for number, (name, remote) in enumerate(files.items()):
            copy = partial / f"{number:06d}-{name.rstrip('/').rpartition('/')[2] or 'file'}"
            info = _translate_errors(source, lambda name=name: system.info(name))
            if "html" in str(info.get("mimetype")) and not name.lower().endswith(PAGES):
                raise DataError(
                    f"data.source={source!r}: the server sends a page of HTML for it, such as the "
                    f"list of a folder; {ONE_FILE}"
                )
            _copy(source, system, name, copy)
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


def _find(source: str) -> "tuple[AbstractFileSystem, dict[str, _Remote]]":
    """Return the file system of a URL and its files there, sorted by name."""
    import fsspec

    protocol = source.partition("://")[0]
    try:
        system, path = fsspec.url_to_fs(source, **_options(protocol))
    except ImportError as error:
        package = PACKAGES.get(protocol)
        hint = f"pip install {package}" if package else one_line(error)
        raise ConfigError(
            f"data.source={source!r}: {protocol}:// needs another package: {hint}"
        ) from None
    except ValueError as error:
        raise ConfigError(f"data.source={source!r}: {one_line(error)}") from None
    except Exception as error:  # some file systems connect at once
        raise _translated(source, error) from None
    if protocol in ("http", "https"):  # a folder is a page there, and a glob has no meaning
        return system, {path: _translate_errors(source, lambda: _web_file(system, path))}
    is_glob = bool(GLOB_CHARACTERS & set(path))
    list_files = system.glob if is_glob else system.find
    infos: dict[str, Any] = _translate_errors(source, lambda: list_files(path, detail=True))
    there = {}
    start = len(re.split(r"[*[]", path)[0].rpartition("/")[0]) if is_glob else len(path)
    for name, info in sorted(infos.items()):
        hidden = HIDDEN_NAME.search(name, start)
        if not hidden or HIDDEN_NAME.search(path, start):  # unless the glob asks for them
            there[name] = _remote(info)
        elif not is_glob:
            there[name[: hidden.end()]] = _Remote(None, "", HIDDEN)
    if not there:
        raise DataError(f"data.source={source!r}: no such file, folder or glob")
    return system, there


def _remote(info: dict[str, Any]) -> _Remote:
    """Return what a file system of fsspec says about a file or folder."""
    version = next((str(info[key]) for key in VERSIONS if info.get(key)), "")
    return _Remote(
        info.get("size"), version, NOT_ENTERED if info.get("type") == "directory" else ""
    )


def _web_file(system: Any, url: str) -> _Remote:
    """Return what a web server says about a file. fsspec does not pass the date on."""
    from fsspec.asyn import sync

    async def ask() -> _Remote:
        session = await system.set_session()
        async with session.head(url, allow_redirects=True) as answer:
            if answer.status == HTTPStatus.NOT_FOUND:
                raise FileNotFoundError(url) from RuntimeError(f"{answer.status} {answer.reason}")
            if not answer.ok:  # some servers do not answer such questions
                return _Remote(None, "")
            headers = answer.headers
            size = headers.get("Content-Length", "")
            version = headers.get("ETag") or headers.get("Last-Modified") or ""
            return _Remote(int(size) if size.isdecimal() else None, version)

    answered: Any = sync(system.loop, ask)
    return answered


def _options(protocol: str) -> dict[str, Any]:
    """Return the options of fsspec's file system, such as short limits on waiting for a server."""
    if protocol not in ("http", "https"):
        return {}
    import aiohttp

    timeout = aiohttp.ClientTimeout(
        total=None, sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS
    )
    # A file that is stored compressed stays so, however the server announces it. Otherwise it
    # would be decompressed on the way, and neither its name nor its size would be right.
    headers = {"Accept-Encoding": "identity"}
    kwargs = {"timeout": timeout, "auto_decompress": False, "headers": headers}
    return {"client_kwargs": kwargs}


def _copy(source: str, system: "AbstractFileSystem", name: str, copy: Path) -> None:
    opened: Any = _translate_errors(source, lambda: system.open(name, "rb"))
    with opened, copy.open("wb") as file:
        while data := _translate_errors(source, lambda: opened.read(COPIED_BYTES)):
            file.write(data)


def _translate_errors(source: str, request: Callable[[], Answer]) -> Answer:
    """Return the answer to a request to the remote side, and translate the errors that it raises.

    The libraries raise errors of any kind. This raises DataError if there is no such file or the
    server cannot be reached, and StorageError for all other errors.
    """
    try:
        return request()
    except Exception as error:
        raise _translated(source, error) from None


def _translated(source: str, error: Exception) -> MoebiusError:
    cause = error.__cause__ or error  # fsspec calls any failure of HTTP a FileNotFoundError
    what = f"{type(cause).__name__}: {one_line(cause)}"
    if is_unreachable(error):
        host = source.partition("://")[2].partition("/")[0]
        return DataError(f"data.source={source!r}: {host} could not be reached ({what})")
    status = getattr(cause, "status", HTTPStatus.NOT_FOUND)
    if status not in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE):
        return DataError(f"data.source={source!r}: the server does not send it ({what})")
    if isinstance(error, FileNotFoundError):
        why = "" if cause is error else f" ({what})"
        return DataError(f"data.source={source!r}: no such file, folder or glob{why}")
    return StorageError(f"data.source={source!r}: {what}")
