"""Download files from URLs that fsspec knows (s3://, gs://, hf://, https://) into the cache, once.

They are downloaded whole, so that preparing the corpus reads local files only.
"""

import hashlib
import json
import re
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from moebius.data.messages import is_unreachable, one_line
from moebius.errors import ConfigError, DataError, StorageError

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
GLOB_CHARACTERS = set("*[")
CONNECT_SECONDS, READ_SECONDS = 10, 60
"""How long a web server may take to answer, and to send more."""
COPIED_BYTES = 2**22
"""Number of bytes that are copied at a time."""


def is_remote(source: str) -> bool:
    """Return whether the source is a URL."""
    return "://" in source


def download(source: str, cache: Path) -> dict[str, Path]:
    """Return local copies of the file, folder or glob at a URL, by their sorted remote names.

    The first call downloads them. Later calls use the copies without any network traffic, so a run
    can be resumed offline. Changes to the remote files go unnoticed: to download them again,
    delete the folder of the copies. A copy is named after its number and the last part of its
    remote name, so a remote name cannot point outside of the cache.

    Raises ConfigError if a package is missing, DataError if there are no such files, one does not
    have the announced length, or a web server sends a page in place of a file, and StorageError
    if they cannot be read or stored.
    """
    if WEB_FOLDER.fullmatch(source):
        raise DataError(f"data.source={source!r}: this is no file; {ONE_FILE}")
    folder = cache / "downloads" / hashlib.sha256(source.encode()).hexdigest()[:20]
    try:
        if not (folder / FILE_LIST).is_file():
            _download(source, folder)
        copies = _listed(folder)
        for copy in copies:
            if (size := copy.path.stat().st_size) != copy.size:
                raise DataError(
                    f"{copy.path}: {size} bytes, but {copy.size} were downloaded; "
                    f"delete {folder} to download again"
                )
    except OSError as error:
        raise StorageError(
            f"{error.filename or folder}: {error.strerror or error}; "
            "set --data.cache to a folder that can be written"
        ) from None
    return {copy.name: copy.path for copy in copies}


class _Copy(NamedTuple):
    """A file that was downloaded."""

    path: Path
    name: str
    """Its remote name."""
    size: int
    """Its size in bytes."""


def _listed(folder: Path) -> list[_Copy]:
    """Return the files in the folder, from its list.

    Lists of earlier versions have sizes without remote names; the numbered names are used then.
    """
    try:
        values = json.loads((folder / FILE_LIST).read_bytes())
        return [
            _Copy(folder / Path(name).name, str(folder / Path(name).name), value)
            if isinstance(value, int)
            else _Copy(folder / Path(name).name, str(value["name"]), int(value["size"]))
            for name, value in values.items()
        ]
    except (ValueError, TypeError, AttributeError, KeyError):
        raise DataError(
            f"{folder / FILE_LIST}: damaged; delete {folder} to download again"
        ) from None


def _download(source: str, folder: Path) -> None:
    """Download into a temporary folder and rename it to `folder`, which is thus never partial."""
    system, names = _find(source)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.{secrets.token_hex(8)}.partial")
    try:
        partial.mkdir()
        listed: dict[str, dict[str, Any]] = {}
        for number, name in enumerate(names):
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
            listed[copy.name] = {"name": name, "size": size}
        (partial / FILE_LIST).write_text(json.dumps(listed), encoding="utf-8")
        try:
            partial.rename(folder)
        except OSError:
            if not (folder / FILE_LIST).is_file():  # unless another process was faster
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _find(source: str) -> "tuple[AbstractFileSystem, list[str]]":
    """Return the file system of a URL and the sorted names of its files there."""
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
    if protocol in ("http", "https"):  # a folder is a page there, and a glob has no meaning
        return system, [path]
    is_glob = bool(GLOB_CHARACTERS & set(path))
    names: list[str] = _translate_errors(
        source, lambda: system.glob(path) if is_glob else system.find(path)
    )
    if not is_glob:  # hidden files are not read, as in a local folder
        names = [name for name in names if "/." not in name.removeprefix(path)]
    if not names:
        raise DataError(f"data.source={source!r}: no such file, folder or glob")
    return system, sorted(names)


def _options(protocol: str) -> dict[str, Any]:
    """Return the options of fsspec's file system, with short limits on waiting for a server."""
    if protocol not in ("http", "https"):
        return {}
    import aiohttp

    timeout = aiohttp.ClientTimeout(
        total=None, sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS
    )
    return {"client_kwargs": {"timeout": timeout}}


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
        cause = error.__cause__ or error  # fsspec calls any failure of HTTP a FileNotFoundError
        what = f"{type(cause).__name__}: {one_line(cause)}"
        if is_unreachable(error):
            host = source.partition("://")[2].partition("/")[0]
            raise DataError(
                f"data.source={source!r}: {host} could not be reached ({what})"
            ) from None
        if isinstance(error, FileNotFoundError):
            why = "" if cause is error else f" ({what})"
            raise DataError(f"data.source={source!r}: no such file, folder or glob{why}") from None
        raise StorageError(f"data.source={source!r}: {what}") from None
