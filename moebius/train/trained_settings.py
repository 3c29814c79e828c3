"""The settings that a checkpoint was trained with, which may not be those that the run has now."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from moebius.config import Config
from moebius.config.fields import shown
from moebius.config.files import from_values, override
from moebius.config.resuming import misfit
from moebius.errors import CheckpointError, ConfigError, ForeignCheckpointError
from moebius.observe.json_lines import read_lines
from moebius.observe.sink import RESUMED
from moebius.train import checkpoint, checkpoint_store
from moebius.train.run_directory import RunDirectory
from moebius.train.run_record import RunRecord

CONFIG = "config"
"""Name of the value of a checkpoint's state.json that holds the settings."""

Report = Callable[[str], None]


def settings_of(values: dict[str, Any]) -> Config | None:
    """Return the settings in the values of a state.json.

    It is None if there are none, because an earlier version wrote the checkpoint, or if this
    version cannot read them.
    """
    try:
        return from_values(values[CONFIG], report=lambda line: None)
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError):
        return None


def check_belongs(folder: Path, values: dict[str, Any], config: Config, identity: str) -> None:
    """Compare a checkpoint's state.json with the run's configuration and text.

    `identity` is the `Corpus.identity` of the text; "" if it is not known. Raises
    ForeignCheckpointError if the checkpoint is another run's.
    """
    if identity and values.get("corpus") != identity:
        raise ForeignCheckpointError(
            f"{folder}: trained on another text than data.source now gives; "
            "its files have changed, or their order"
        )
    trained = settings_of(values)
    if trained and (differing := misfit(trained, config)):
        name, old, new = differing
        raise ForeignCheckpointError(
            f"{folder}: trained with {name}={shown(old)}, but the run has {name}={shown(new)}; "
            "it is another run's, or config.toml was changed"
        )


def last_trained(
    run: RunDirectory, record: RunRecord | None, report: Report, step: int | None = None
) -> Config:
    """Return the configuration that the run was trained with last.

    It is that of run.json. If there is none, it is that of the newest checkpoint, or of the one of
    `step`; and if there is none either, that of config.toml, after a line to `report`. Raises
    CheckpointError and ConfigError as `RunDirectory.config` does.
    """
    if record is not None:
        return record.config
    folders = checkpoint_store.complete(run.checkpoints)
    for folder in folders:
        if step in (None, checkpoint_store.step_of(folder)):
            try:
                config = settings_of(checkpoint.read_state(folder))
            except CheckpointError:
                continue  # loading it says what is wrong
            if config is not None:
                return config
    if folders:
        report(
            f"{run.checkpoints}: the checkpoints do not say which settings they were trained with "
            "(an earlier version wrote them), so that changes to config.toml cannot be noticed"
        )
    return run.config()


def settings_at(run: RunDirectory, known: Config | None, latest: Config, step: int) -> Config:
    """Return the settings that a step of the run was trained with.

    known is what its checkpoint says. If that is nothing, the changes since then, which
    events.jsonl lists, are undone in `latest`, the settings that the run was trained with last.
    Raises OSError.
    """
    if known is not None:
        return known
    events = read_lines(run.events_path) if run.events_path.exists() else []
    return undone(latest, events, step)


def undone(latest: Config, events: Iterable[dict[str, Any]], step: int) -> Config:
    """Return the settings before the changes that were made at `step` or later."""
    values: dict[str, Any] = {}
    for event in reversed(list(events)):
        changed = event.get("changed")
        if event.get("event") == RESUMED and event["step"] >= step and isinstance(changed, dict):
            values |= {name: pair[0] for name, pair in changed.items()}
    nested: dict[str, Any] = {}
    for name, value in values.items():
        *sections, key = name.split(".")
        table = nested
        for section in sections:
            table = table.setdefault(section, {})
        table[key] = value
    try:
        return override(latest, nested)
    except ConfigError:  # a setting of that time does not exist any more
        return latest
