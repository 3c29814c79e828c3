"""run.json: what a run was trained with so far, so that a resumed run notices what has changed.

config.toml is for people, who may edit it or lose a part of it. The record is compared with it.
"""

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from moebius.config import Config
from moebius.config.files import from_values
from moebius.data import Corpus
from moebius.data.sealed import read_sealed, sealed_text
from moebius.errors import StorageError
from moebius.train.origin import Origin

VERSION = 1


@dataclass(frozen=True)
class RunRecord:
    """The configuration and the text that a run was trained with last."""

    config: Config
    identity: str = ""
    """`Corpus.identity` of the run's text."""
    folders: tuple[str, ...] = ()
    """Names of the folders in data.cache that hold the prepared text, one for each source."""
    tokenizer: str = ""
    """SHA-256 of the run's tokenizer.json."""
    origin: Origin | None = None
    """Where the run's first checkpoint comes from; None if the run began with new weights."""
    settings: frozenset[str] = field(default=frozenset(), compare=False)
    """Dotted names of the settings that the file holds. A later version has more of them."""

    @classmethod
    def of(
        cls, config: Config, corpus: Corpus, tokenizer: str = "", origin: Origin | None = None
    ) -> "RunRecord":
        """Return the record of a configuration, its text, its tokenizer's checksum and origin."""
        folders = tuple(folder.name for folder in corpus.folders)
        return cls(config, corpus.identity, folders, tokenizer, origin)

    @classmethod
    def read(cls, path: Path) -> "RunRecord | None":
        """Return the record in a file; None if there is none, as in runs of earlier versions.

        Raises ValueError, LookupError, TypeError, AttributeError, RecursionError or OSError if the
        file is damaged.
        """
        if not path.exists():
            return None
        values = read_sealed(path)
        if values["version"] != VERSION:
            raise ValueError(f"version {values['version']}")
        config = from_values(values["config"], report=lambda line: None)
        text, names = values["text"], frozenset(setting_names(values["config"]))
        origin = Origin(**values["origin"]) if "origin" in values else None
        folders = tuple(text["folders"])
        return cls(config, text["identity"], folders, text["tokenizer"], origin, names)

    def write(self, path: Path) -> None:
        """Write the record. Raises StorageError."""
        text = {"identity": self.identity, "folders": self.folders, "tokenizer": self.tokenizer}
        values = {"version": VERSION, "config": asdict(self.config), "text": text}
        values |= {"origin": asdict(self.origin)} if self.origin else {}
        write_atomically(path, sealed_text(values) + "\n")


def write_atomically(path: Path, text: str) -> None:
    """Replace a file by one with this text, so that no crash leaves a part. Raises StorageError.

    The text is on the disk when this function returns.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror or error}") from None
    finally:
        partial.unlink(missing_ok=True)


def setting_names(values: dict[str, Any], path: str = "") -> set[str]:
    """Return the dotted names of all settings in nested values, as a TOML file has them."""
    names = set[str]()
    for key, value in values.items():
        inner = setting_names(value, f"{path}{key}.") if isinstance(value, dict) else {path + key}
        names |= inner
    return names
