"""The commands of the command line. A new one needs a module with a `COMMAND` and a line here."""

import difflib
from importlib import import_module

from moebius.cli.command import Command
from moebius.config.presets import PRESETS
from moebius.config.suggestions import SIMILAR
from moebius.errors import ConfigError

MODULES = (  # in the order of `moebius --help`
    "moebius.cli.train",
    "moebius.cli.resume",
    "moebius.cli.branch",
    "moebius.cli.generate",
    "moebius.cli.evaluate",
    "moebius.cli.export",
    "moebius.cli.importing",
    "moebius.cli.watch",
    "moebius.cli.report",
    "moebius.cli.data",
    "moebius.cli.config",
    "moebius.cli.plan",
    "moebius.cli.profile",
    "moebius.cli.ablate",
    "moebius.cli.doctor",
)


def commands() -> dict[str, Command]:
    """Return every command by its name."""
    found = [import_module(module).COMMAND for module in MODULES]
    return {command.name: command for command in found}


def command_named(name: str) -> Command:
    """Return the command of that name.

    Raises ConfigError, with the most similar name, if there is none.
    """
    known = commands()
    if name in known:
        return known[name]
    if name.startswith("-"):
        raise ConfigError(
            f"{name!r}: a command comes first, as in `moebius train`; `moebius help` lists them"
        )
    if name in PRESETS or name.lower().endswith(".toml"):
        raise ConfigError(f"{name!r}: a command comes first, as in `moebius train {name}`")
    close = difflib.get_close_matches(name, known, n=1, cutoff=SIMILAR)
    hint = f"did you mean `moebius {close[0]}`? " if close else ""
    raise ConfigError(f"unknown command {name!r}; {hint}`moebius help` lists the commands")
