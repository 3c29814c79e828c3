"""A run's folder: OUT/NAME with everything that the run is."""

import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from moebius.config import Config
from moebius.data import Tokenizer
from moebius.errors import ConfigError, StorageError
from moebius.settings import read_config, to_toml

LONGEST_STEM = 48  # with date and time, a run's name is to have at most 64


@dataclass(frozen=True)
class RunDirectory:
    """Paths of a run; `plan` names a new one, `open` finds one."""

    root: Path

    @classmethod
    def plan(cls, config: Config, source: str) -> "RunDirectory":
        """Where a new run is to be. Raises ConfigError if something is there: an existing run is never written into."""
        name = config.train.name or f"{_letters(Path(source).stem)}-{time.strftime('%Y%m%d-%H%M%S')}"
        run = cls(Path(config.train.out) / name)
        if run.root.exists():
            raise run._exists()
        return run

    def create(self, config: Config, tokenizer: Tokenizer) -> None:
        """Make the folder with config.toml and tokenizer.json, all at once: what is killed in between leaves no half of it.

        Raises ConfigError if something is there, StorageError.
        """
        aside = RunDirectory(self.root.with_name(f".{self.root.name}.partial"))
        try:
            shutil.rmtree(aside.root, ignore_errors=True)
            aside.root.mkdir(parents=True)
            aside.config_path.write_text(to_toml(config), encoding="utf-8")
            tokenizer.save(aside.tokenizer_path)
            if self.root.exists() or self.root.is_symlink():
                raise self._exists()
            aside.root.rename(self.root)
        except OSError as error:
            raise StorageError(f"{self.root}: {error.strerror}; choose another --train.out") from None
        finally:
            shutil.rmtree(aside.root, ignore_errors=True)

    def _exists(self) -> ConfigError:
        return ConfigError(
            f"train.name={self.root.name!r}: {self.root} exists; choose another --train.name, or `moebius resume {self.root}`"
        )

    @classmethod
    def open(cls, path: str) -> "RunDirectory":
        """The run in that folder. Raises ConfigError if there is none."""
        run = cls(Path(path))
        if not run.config_path.is_file():
            raise ConfigError(f"{path}: not a run directory, there is no config.toml in it")
        return run

    @property
    def config_path(self) -> Path:
        return self.root / "config.toml"

    @property
    def metrics_path(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def events_path(self) -> Path:
        return self.root / "events.jsonl"

    @property
    def tensorboard_path(self) -> Path:
        return self.root / "tb"

    @property
    def tokenizer_path(self) -> Path:
        return self.root / "tokenizer.json"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    def config(self) -> Config:
        """The run's resolved configuration."""
        return read_config(str(self.config_path), [])

    def tokenizer(self) -> Tokenizer:
        """The tokenizer the run was trained with."""
        return Tokenizer.load(self.tokenizer_path)


def _letters(name: str) -> str:
    """A file's name as the first part of a run's."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", name)[:LONGEST_STEM]
