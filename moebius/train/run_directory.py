"""A run's folder, OUT/NAME, which holds all files of the run."""

import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from moebius.config import Config
from moebius.config.files import read_config, to_toml
from moebius.data import Tokenizer
from moebius.errors import ConfigError, StorageError
from moebius.observe.json_lines import EVENTS, METRICS

LONGEST_STEM = 48  # characters of a name before its date and time; 64 characters in all


@dataclass(frozen=True)
class RunDirectory:
    """The paths of a run. `plan` names a new run's directory, `open` finds an existing one."""

    root: Path

    @classmethod
    def plan(cls, config: Config, source: str) -> "RunDirectory":
        """Return the directory that a new run will have, without creating it.

        source is the preset or file that an unnamed run is named after. Raises ConfigError if the
        path already exists, because a run never writes into the directory of another run.
        """
        unnamed = f"{_letters(Path(source).stem)}-{time.strftime('%Y%m%d-%H%M%S')}"
        run = cls(Path(config.train.out) / (config.train.name or unnamed))
        if run.root.exists():
            raise run._exists()
        return run

    @classmethod
    def open(cls, path: str) -> "RunDirectory":
        """Return the run in that folder. Raises ConfigError if there is none."""
        run = cls(Path(path))
        if not run.config_path.is_file():
            raise ConfigError(f"{path}: not a run directory, there is no config.toml in it")
        return run

    def create(self, config: Config, tokenizer: Tokenizer) -> None:
        """Create the folder with config.toml and tokenizer.json in one step.

        A process that is killed in between leaves no partial folder. Raises ConfigError if the
        path already exists, and StorageError if the folder cannot be created.
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
            raise StorageError(
                f"{self.root}: {error.strerror}; choose another --train.out"
            ) from None
        finally:
            shutil.rmtree(aside.root, ignore_errors=True)

    @property
    def config_path(self) -> Path:
        """Path of config.toml, the run's resolved configuration."""
        return self.root / "config.toml"

    @property
    def metrics_path(self) -> Path:
        """Path of metrics.jsonl, which has one line per logged step."""
        return self.root / METRICS

    @property
    def events_path(self) -> Path:
        """Path of events.jsonl, which has one line per alarm and per skipped update."""
        return self.root / EVENTS

    @property
    def tokenizer_path(self) -> Path:
        """Path of tokenizer.json, the tokenizer that the run is trained with."""
        return self.root / "tokenizer.json"

    @property
    def checkpoints(self) -> Path:
        """The folder of the run's checkpoints."""
        return self.root / "checkpoints"

    def config(self) -> Config:
        """Return the run's configuration. Raises ConfigError if it cannot be read."""
        return read_config(str(self.config_path), [])

    def tokenizer(self) -> Tokenizer:
        """Return the run's tokenizer. Raises DataError if it cannot be read."""
        return Tokenizer.load(self.tokenizer_path)

    def _exists(self) -> ConfigError:
        return ConfigError(
            f"train.name={self.root.name!r}: {self.root} exists; choose another --train.name, "
            f"or `moebius resume {self.root}`"
        )


def _letters(name: str) -> str:
    """Return a file's name with only the characters that a run's name may have."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", name)[:LONGEST_STEM]
