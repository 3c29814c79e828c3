"""The interface of a command: its name, its help, its arguments, and the function that runs it."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import dataclass, fields

from moebius.config import Config

SECTIONS = tuple(section.name for section in fields(Config))


@dataclass(frozen=True)
class Argument:
    """A positional argument, such as CONFIG. All of them come before the settings."""

    metavar: str
    """The name in the usage line. In lower case, it is the attribute that holds the value."""
    help: str
    """What the argument may be, in one line."""
    default: str | None = None
    """The value of a missing argument. None means that the argument is required."""
    mistaken_flags: tuple[str, ...] = ()
    """Flags that people may try instead, such as `--config`. They cause a helpful error."""
    is_repeated: bool = False
    """Whether several may follow each other, of which the attribute is then a list. Only the last
    argument can be repeated."""


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
    """A command of the command line. Each one is the `COMMAND` of its own module."""

    name: str
    """The word after `moebius`."""
    summary: str
    """What the command does, in a few words, for the list of commands."""
    usage: str
    """What follows `moebius NAME`, such as `[CONFIG] [--section.key value ...]`."""
    description: str
    """What a newcomer needs to know, in a few sentences."""
    examples: tuple[str, ...]
    """Complete command lines, some with a remark after `#`."""
    run: Callable[[Namespace], None]
    """Run the command. The namespace has an attribute for each argument and each option. If the
    command takes settings, `settings` is the list of their flags for `moebius.config.flags`.

    This function imports torch and everything else that is slow to import, so that
    `moebius --help` is quick. Raises MoebiusError for anything that the user can fix.
    """
    arguments: tuple[Argument, ...] = ()
    """The positional arguments, in order."""
    settings: tuple[str, ...] = ()
    """The sections and single settings of the configuration that `--section.key value` flags may
    change. Without any, the command takes no such flags."""
    add_options: Callable[[ArgumentParser], None] = _no_options
    """Add the command's own options to a parser."""

    @property
    def usage_line(self) -> str:
        """The complete usage, such as `moebius train [CONFIG] [--section.key value ...]`."""
        return f"moebius {self.name} {self.usage}".rstrip()
