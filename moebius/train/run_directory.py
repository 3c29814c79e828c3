"""A run's folder, OUT/NAME, which holds all files of the run."""

import errno
import json
import os
import re
import shutil
import tempfile
import time
import tomllib
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from itertools import count
from pathlib import Path

from moebius.config import Config
from moebius.config.files import FOLLOWING, PHASES, from_values, read_toml, to_toml
from moebius.config.phases import REPLACED
from moebius.data import Tokenizer
from moebius.data.shards import TOKENIZER, file_sha256
from moebius.errors import CheckpointError, ConfigError, StorageError
from moebius.observe.json_lines import EVENTS, METRICS
from moebius.train.not_a_run import not_a_run
from moebius.train.origin import Begun
from moebius.train.ownership import Ownership
from moebius.train.run_record import RunRecord, setting_names, write_atomically

LONGEST_NAME = 64  # characters of a run's name
LONGEST_STEM = 48  # characters of a name before its date and time
EVALUATIONS = "evaluations"  # folder of the results of `moebius evaluate`
STARTING = ".starting"  # suffix of a folder that becomes a run
ABANDONED_SECONDS = 3600  # age at which what a killed process left of a new run is removed

Report = Callable[[str], None]


@dataclass(frozen=True)
class RunDirectory:
    """The paths of a run. `plan` names a new run's directory, `open` finds an existing one."""

    root: Path

    @classmethod
    def plan(cls, config: Config, source: str) -> "RunDirectory":
        """Return the directory that a new run will have, without creating it.

        source is the preset or file that an unnamed run is named after. Raises ConfigError if a
        named run already exists, because a run never writes into the directory of another run.
        """
        unnamed = f"{_letters(Path(source).stem)}-{time.strftime('%Y%m%d-%H%M%S')}"
        run = cls(Path(config.train.out) / (config.train.name or unnamed))
        if config.train.name and run.root.exists():
            raise run._exists()
        return run

    @classmethod
    def open(cls, path: str) -> "RunDirectory":
        """Return the run in that folder. Raises ConfigError, which says what is there instead."""
        run = cls(Path(path))
        if not run.config_path.is_file():
            raise ConfigError(f"{path}: {not_a_run(run.root)}")
        return run

    def check_writable(self) -> None:
        """Raise StorageError if the directory could not be created. Leaves nothing behind."""
        place = self.root.parent
        while not os.path.lexists(place) and place != place.parent:
            place = place.parent
        try:
            with tempfile.TemporaryFile(dir=place):
                pass
        except OSError as error:
            raise self._not_writable(error) from None

    def create(
        self,
        record: RunRecord,
        tokenizer: Tokenizer,
        report: Report,
        fill: Callable[["RunDirectory"], None] = lambda run: None,
    ) -> Ownership:
        """Create the folder in one step, with all that a run begins with, and own it.

        `fill` adds what this run begins with besides, such as a checkpoint, to the folder while
        it still has a temporary name. A process that is killed in between leaves no partial run.
        An unnamed run takes the next name if another process has just taken its own; the
        ownership has the folder. Raises ConfigError if a named run already exists, and
        StorageError if the folder cannot be created.
        """
        try:
            self.root.parent.mkdir(parents=True, exist_ok=True)
            self._remove_abandoned()
            name = f".{self.root.name}.{uuid.uuid4().hex[:8]}{STARTING}"  # no other process has it
            aside = RunDirectory(self.root.with_name(name))
            aside.root.mkdir()
        except OSError as error:
            raise self._not_writable(error) from None
        try:
            owner = aside.own(report)
            aside.write_config(record.config)
            tokenizer.save(aside.tokenizer_path)
            checksum = file_sha256(aside.tokenizer_path)
            replace(record, tokenizer=checksum).write(aside.record_path)
            fill(aside)
            is_named = bool(record.config.train.name)
            self._move(owner, [self.root] if is_named else self._names())
            return owner
        except OSError as error:
            raise self._not_writable(error) from None
        finally:
            shutil.rmtree(aside.root, ignore_errors=True)

    def own(self, report: Report) -> Ownership:
        """Return the right to write into the folder, which one process at a time can have.

        `report` gets a line if the file system cannot tell. Raises ConfigError, which names the
        owner, if another process has it, and StorageError if the folder cannot be written.
        """
        try:
            return Ownership(self.root, report)
        except OSError as error:
            raise StorageError(
                f"{error.filename or self.root}: {error.strerror or error}"
            ) from None

    @property
    def config_path(self) -> Path:
        """Path of config.toml, the run's resolved configuration."""
        return self.root / "config.toml"

    @property
    def record_path(self) -> Path:
        """Path of run.json, with which a resumed run is compared."""
        return self.root / "run.json"

    @property
    def metrics_path(self) -> Path:
        """Path of metrics.jsonl, which has one line per logged step."""
        return self.root / METRICS

    @property
    def events_path(self) -> Path:
        """Path of events.jsonl, which has one line per alarm, skipped update and change."""
        return self.root / EVENTS

    @property
    def logs(self) -> tuple[Path, Path]:
        """The paths of metrics.jsonl and events.jsonl."""
        return self.metrics_path, self.events_path

    @property
    def tokenizer_path(self) -> Path:
        """Path of tokenizer.json, the tokenizer that the run is trained with."""
        return self.root / TOKENIZER

    @property
    def checkpoints(self) -> Path:
        """The folder of the run's checkpoints."""
        return self.root / "checkpoints"

    def evaluations_after(self, step: int) -> list[Path]:
        """Return the files of evaluations of checkpoints after a step."""
        files = sorted((self.root / EVALUATIONS).glob("step-*.json"))
        numbers = (re.match(r"step-(\d+)", file.name) for file in files)
        return [file for file, n in zip(files, numbers, strict=True) if n and int(n[1]) > step]

    def config(self) -> Config:
        """Return the run's configuration.

        If phases were added to config.toml, they replace what the run had in place of phases.
        Raises CheckpointError if a part of config.toml is missing, because defaults in its place
        would be another run, and ConfigError if a setting is not allowed.
        """
        remedy = "restore config.toml from a copy"
        if self.record_path.exists():
            remedy += f", or its values from {self.record_path.name}"
        try:
            values = read_toml(self.config_path)
        except ConfigError as error:
            raise CheckpointError(f"{error}; {remedy}") from None
        record = self.record(lambda line: None)
        sections = [field.name for field in fields(Config)]
        missing = [f"[{name}]" for name in sections if not values.get(name)]
        if record and not missing:
            optional = {PHASES, *(FOLLOWING if values["train"].get("phases") else ())}
            missing = sorted(record.settings - setting_names(values) - optional)
        if missing:
            raise CheckpointError(
                f"{self.config_path}: damaged, {', '.join(missing[:3])} "
                f"{'is' if len(missing) == 1 else 'are'} missing; {remedy}"
            )
        if record and values["train"].get("phases") and not record.config.train.phases:
            had = {name: getattr(record.config.train, name) for name in REPLACED}
            kept = {n: v for n, v in values["train"].items() if n not in had or had[n] != v}
            values = values | {"train": kept}
        return from_values(values, origin=f"{self.config_path}: ")

    def record(self, report: Report) -> RunRecord | None:
        """Return what the run was trained with last, if it is known.

        `report` gets a line if the record is missing, as in a run of an earlier version, or
        damaged.
        """
        problem = "missing (deleted, or never written by an earlier version)"
        try:
            if record := RunRecord.read(self.record_path):
                return record
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            problem = f"damaged ({type(error).__name__})"
        report(
            f"{self.record_path}: {problem}, so that the run is compared with what its checkpoint "
            "says instead; `moebius resume` writes it anew"
        )
        return None

    def has_written(self, config: Config) -> bool:
        """Return whether config.toml has these settings and no others.

        Others may be those that added phases replace, which `config` passes over.
        """
        return read_toml(self.config_path) == tomllib.loads(to_toml(config))

    def write_config(self, config: Config) -> None:
        """Write config.toml. A crash leaves either the old or the new one. Raises StorageError."""
        write_atomically(self.config_path, to_toml(config))

    def write_first_event(self, begun: Begun) -> None:
        """Write events.jsonl with the event that says where the run comes from.

        Raises StorageError.
        """
        write_atomically(self.events_path, json.dumps(begun.to_json()) + "\n")

    def tokenizer(self) -> Tokenizer:
        """Return the run's tokenizer. Raises DataError if it cannot be read."""
        return Tokenizer.load(self.tokenizer_path)

    def _move(self, owner: Ownership, places: Iterable[Path]) -> None:
        """Rename the owner's folder to the first of the places that does not exist."""
        for place in places:
            if os.path.lexists(place):
                continue
            try:
                return owner.rename(place)
            except OSError as error:  # another process may have created it since
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                    raise
        raise self._exists()

    def _names(self) -> Iterator[Path]:
        """Yield the run's own path, and then the same with a number at the end, without end."""
        stem, date, clock = self.root.name.rsplit("-", 2)
        for number in count(1):
            end = f"-{date}-{clock}" + (f"-{number}" if number > 1 else "")
            yield self.root.with_name(stem[: LONGEST_NAME - len(end)] + end)

    def _remove_abandoned(self) -> None:
        for partial in self.root.parent.glob(f".*{STARTING}"):
            if time.time() - partial.lstat().st_mtime > ABANDONED_SECONDS:
                shutil.rmtree(partial, ignore_errors=True)

    def _not_writable(self, error: OSError) -> StorageError:
        reason = "Not a directory" if isinstance(error, FileExistsError) else error.strerror
        return StorageError(f"{self.root}: {reason}; choose another --train.out")

    def _exists(self) -> ConfigError:
        return ConfigError(
            f"train.name={self.root.name!r}: {self.root} exists; choose another --train.name, "
            f"or `moebius resume {self.root}`"
        )


def _letters(name: str) -> str:
    """Return a file's name with only the characters that a run's name may have."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", name)[:LONGEST_STEM]
