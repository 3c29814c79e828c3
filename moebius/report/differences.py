"""The settings in which several runs differ."""

from collections.abc import Sequence

from moebius.config import Config
from moebius.config.fields import settings, shown
from moebius.config.resuming import value_of

IGNORED = ("train.name", "train.out")
"""Settings that say where a run is, and not what it does."""


def differences(configs: Sequence[Config | None]) -> list[tuple[str, list[str]]]:
    """Return the name of each setting that is not the same in all runs, and its value in each.

    A run whose configuration is unknown has the value "?".
    """
    known = [config for config in configs if config is not None]
    rows: list[tuple[str, list[str]]] = []
    for name in settings(Config):
        values = [value_of(config, name) for config in known]
        if name in IGNORED or all(value == values[0] for value in values):
            continue
        rows.append((name, ["?" if c is None else shown(value_of(c, name)) for c in configs]))
    return rows
