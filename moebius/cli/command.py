"""The interface of a command: its name, its help, what it takes, and what it runs."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import dataclass, fields

from moebius.config import Config

SECTIONS = tuple(section.name for section in fields(Config))


@dataclass(frozen=True)
class Argument:
    """An argument without a flag, such as CONFIG. All of them come before the settings."""

    metavar: str
    """The name shown in the usage line; in lower case, the attribute that holds the value."""
    help: str
    """What the argument may be, in one line."""
    default: str | None = None
    """The value that a missing argument has; None: the argument is required."""
    mistaken_flags: tuple[str, ...] = ()
    """Flags that people try in its place, such as `--config`. They get a helpful error."""


CONFIG = Argument(
    "CONFIG",
    "a preset or a TOML file",
    default="tiny",
    mistaken_flags=("--config", "--config-file", "--preset", "-c"),
)
RUN = Argument(
    "RUN", "the directory of a run, such as runs/my-run", mistaken_flags=("--run", "--run-dir")
)


def _no_options(parser: ArgumentParser) -> None:
    """Add nothing: the command has no options of its own."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command of the command line. Each lives in a module of its own, as `COMMAND`."""

    name: str
    """The word after `moebius`."""
    summary: str
    """What the command does, in a few words, for the list of commands."""
    usage: str
    """What follows `moebius NAME`, such as `[CONFIG] [--section.key value ...]`."""
    description: str
    """What a newcomer needs to know, in a few sentences."""
    examples: tuple[str, ...]
    """Complete command lines, each with a remark after `#` where one helps."""
    run: Callable[[Namespace], None]
    """Do the work. The namespace has an attribute for each argument and each option and, where
    the command takes settings, `settings`: the list of flags for `moebius.config.flags`.

    Torch and everything else that is slow to import is imported in here, so that
    `moebius --help` is quick. Raises MoebiusError for anything the user can put right.
    """
    arguments: tuple[Argument, ...] = ()
    """The arguments without a flag, in their order."""
    settings: tuple[str, ...] = ()
    """The sections of the configuration that `--section.key value` flags may change. If there are
    none, the command takes no such flags."""
    add_options: Callable[[ArgumentParser], None] = _no_options
    """Add the command's own options to a parser."""

    @property
    def usage_line(self) -> str:
        """The complete usage, such as `moebius train [CONFIG] [--section.key value ...]`."""
        return f"moebius {self.name} {self.usage}".rstrip()
