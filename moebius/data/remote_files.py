"""Find and read the files at a URL with fsspec, and say in one line what went wrong."""

import re
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from moebius.data.messages import is_unreachable, one_line
from moebius.data.tally import HIDDEN, NOT_ENTERED
from moebius.errors import ConfigError, DataError, MoebiusError, StorageError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

Answer = TypeVar("Answer")

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


class Remote(NamedTuple):
    """A file at a URL, or something there that is not read."""

    size: int | None
    """Its size in bytes; None if the server does not say."""
    version: str
    """What the server says about its version, such as an ETag; empty if it says nothing."""
    reason: str = ""
    """Why it is not read; empty if it is."""


def find(source: str) -> "tuple[AbstractFileSystem, dict[str, Remote]]":
    """Return the file system of a URL and its files there, sorted by name.

    Raises ConfigError if a package is missing, DataError if there are none or the server cannot be
    reached, and StorageError for all other errors.
    """
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
        return system, {path: translate_errors(source, lambda: _web_file(system, path))}
    is_glob = bool(GLOB_CHARACTERS & set(path))
    list_files = system.glob if is_glob else system.find
    infos: dict[str, Any] = translate_errors(source, lambda: list_files(path, detail=True))
    there = {}
    start = len(re.split(r"[*[]", path)[0].rpartition("/")[0]) if is_glob else len(path)
    for name, info in sorted(infos.items()):
        hidden = HIDDEN_NAME.search(name, start)
        if not hidden or HIDDEN_NAME.search(path, start):  # unless the glob asks for them
            there[name] = _remote(info)
        elif not is_glob:
            there[name[: hidden.end()]] = Remote(None, "", HIDDEN)
    if not there:
        raise DataError(f"data.source={source!r}: no such file, folder or glob")
    return system, there


def _remote(info: dict[str, Any]) -> Remote:
    """Return what a file system of fsspec says about a file or folder."""
    version = next((str(info[key]) for key in VERSIONS if info.get(key)), "")
    return Remote(
        info.get("size"), version, NOT_ENTERED if info.get("type") == "directory" else ""
    )


def _web_file(system: Any, url: str) -> Remote:
    """Return what a web server says about a file. fsspec does not pass the date on."""
    from fsspec.asyn import sync

    async def ask() -> Remote:
        session = await system.set_session()
        async with session.head(url, allow_redirects=True) as answer:
            if answer.status == HTTPStatus.NOT_FOUND:
                raise FileNotFoundError(url) from RuntimeError(f"{answer.status} {answer.reason}")
            if not answer.ok:  # some servers do not answer such questions
                return Remote(None, "")
            headers = answer.headers
            size = headers.get("Content-Length", "")
            version = headers.get("ETag") or headers.get("Last-Modified") or ""
            return Remote(int(size) if size.isdecimal() else None, version)

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


def copy_file(source: str, system: "AbstractFileSystem", name: str, copy: Path) -> None:
    """Download a file of a URL's file system. Raises the errors of `find`, and OSError."""
    opened: Any = translate_errors(source, lambda: system.open(name, "rb"))
    with opened, copy.open("wb") as file:
        while data := translate_errors(source, lambda: opened.read(COPIED_BYTES)):
            file.write(data)


def translate_errors(source: str, request: Callable[[], Answer]) -> Answer:
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
