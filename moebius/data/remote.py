"""Files at URLs that fsspec knows (s3://, gs://, hf://, https://): downloaded whole, once, into the cache."""

import hashlib
import json
import secrets
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moebius.data.rows import one_line
from moebius.errors import ConfigError, DataError, StorageError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

LIST = "files.json"
PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs", "adl": "adlfs"}
PACKAGES |= {"http": "aiohttp requests", "https": "aiohttp requests", "hf": "huggingface_hub", "sftp": "paramiko"}
REMOTE_GLOB = set("*[")


def is_remote(source: str) -> bool:
    """Whether it is a URL."""
    return "://" in source


def downloaded(source: str, cache: Path) -> list[Path]:
    """Local copies of the file, folder or glob at a URL, in the order of their names there.

    A second call finds them and asks nobody, so a run can be resumed without a network, and does not notice what has changed
    there: delete the folder (DataError and StorageError name it) for that. Names there do not become paths here: a copy is
    called by its number and the last part of its name. Raises ConfigError if a package is missing, DataError if there is
    nothing or less than announced, StorageError if it cannot be read or kept.
    """
    folder = cache / "downloads" / hashlib.sha256(source.encode()).hexdigest()[:20]
    try:
        if not (folder / LIST).is_file():
            _download(source, folder)
        sizes = _sizes(folder)
        for name, size in sizes.items():
            if (found := (folder / name).stat().st_size) != size:
                raise DataError(f"{folder / name}: {found} bytes, {size} were downloaded; delete {folder}")
    except OSError as error:
        raise StorageError(
            f"{error.filename or folder}: {error.strerror or error}; set --data.cache to a folder that can be written"
        ) from None
    return [folder / name for name in sizes]


def _sizes(folder: Path) -> dict[str, int]:
    try:
        return {Path(name).name: int(size) for name, size in json.loads((folder / LIST).read_bytes()).items()}
    except (ValueError, TypeError, AttributeError):
        raise DataError(f"{folder / LIST}: damaged; delete {folder} to download again") from None


def _download(source: str, folder: Path) -> None:
    """Aside, then renamed: a folder of its final name is whole."""
    system, names = _listed(source)
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = folder.with_name(f".{folder.name}.{secrets.token_hex(8)}.partial")
    try:
        aside.mkdir()
        sizes: dict[str, int] = {}
        for number, name in enumerate(names):
            copy = aside / f"{number:06d}-{name.rstrip('/').rpartition('/')[2] or 'file'}"
            expected = _asked(source, lambda name=name: system.info(name)).get("size")
            _copy(source, system, name, copy)
            sizes[copy.name] = copy.stat().st_size
            if expected is not None and sizes[copy.name] != expected:
                raise DataError(f"data.source={source!r}: {name}: {sizes[copy.name]} bytes came, {expected} were announced")
        (aside / LIST).write_text(json.dumps(sizes), encoding="utf-8")
        try:
            aside.rename(folder)
        except OSError:
            if not (folder / LIST).is_file():  # else another process was first
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _listed(source: str) -> "tuple[AbstractFileSystem, list[str]]":
    import fsspec

    protocol = source.partition("://")[0]
    try:
        system, path = fsspec.url_to_fs(source)
    except ImportError as error:
        package = PACKAGES.get(protocol)
        hint = f"pip install {package}" if package else one_line(error)
        raise ConfigError(f"data.source={source!r}: {protocol}:// needs another package: {hint}") from None
    except ValueError as error:
        raise ConfigError(f"data.source={source!r}: {one_line(error)}") from None
    if protocol in ("http", "https"):  # where a folder is a page, and no character is special
        return system, [path]
    is_glob = bool(REMOTE_GLOB & set(path))
    names: list[str] = _asked(source, lambda: system.glob(path) if is_glob else system.find(path))
    if not is_glob:  # as in a local folder, hidden files are not read
        names = [name for name in names if "/." not in name.removeprefix(path)]
    if not names:
        raise DataError(f"data.source={source!r}: no such file, folder or glob")
    return system, sorted(names)


def _copy(source: str, system: "AbstractFileSystem", name: str, copy: Path) -> None:
    opened = _asked(source, lambda: system.open(name, "rb"))
    with opened, copy.open("wb") as file:
        while data := _asked(source, lambda: opened.read(2**22)):
            file.write(data)


def _asked(source: str, question: Any) -> Any:
    """The answer of the other side, whose libraries raise errors of any kind."""
    try:
        return question()
    except FileNotFoundError:
        raise DataError(f"data.source={source!r}: no such file, folder or glob") from None
    except Exception as error:
        raise StorageError(f"data.source={source!r}: {type(error).__name__}: {one_line(error)}") from None
