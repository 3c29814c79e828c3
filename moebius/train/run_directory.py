"""A run's folder: OUT/NAME with everything that the run is."""

import time
from dataclasses import dataclass
from pathlib import Path

from moebius.config import Config
from moebius.data import Tokenizer
from moebius.errors import ConfigError, StorageError
from moebius.settings import read_config, to_toml


@dataclass(frozen=True)
class RunDirectory:
    """Paths of a run; `create` makes a new one, `open` finds one."""

    root: Path

    @classmethod
    def create(cls, config: Config, source: str) -> "RunDirectory":
        """Make the folder and write config.toml. An existing run is never written into.

        Raises ConfigError when the folder exists, StorageError when it cannot be made.
        """
        name = config.train.name or f"{Path(source).stem}-{time.strftime('%Y%m%d-%H%M%S')}"
        run = cls(Path(config.train.out) / name)
        try:
            run.root.mkdir(parents=True)
            run.config_path.write_text(to_toml(config))
        except FileExistsError:
            raise ConfigError(
                f"train.name={name!r}: {run.root} exists; choose another --train.name, or `moebius resume {run.root}`"
            ) from None
        except OSError as error:
            raise StorageError(f"{run.root}: {error.strerror}; choose another --train.out") from None
        return run

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
