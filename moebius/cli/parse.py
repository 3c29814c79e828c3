"""Split a command's words into its arguments, its own options and the settings.

argparse only reads the options, because it would mistake the value of `--section.key value` for an
argument.
"""

import difflib
from argparse import Action, ArgumentParser, HelpFormatter, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from moebius.cli.command import CONFIG, Argument, Command
from moebius.config.fields import is_exact_integer
from moebius.config.flags import given_twice, is_last_part
from moebius.config.width import text_width
from moebius.errors import ConfigError

SIMILAR_OPTION = 0.75  # smallest similarity (by difflib) of an option that is suggested


def parse(command: Command, words: Sequence[str]) -> Namespace:
    """Return the command's arguments, options and settings, as `Command.run` expects them.

    Raises ConfigError for an argument that is missing or in the wrong place, for an option that
    the command does not have, and for an option's value of the wrong type. Flags that may be
    settings are not checked here; `moebius.config` checks them.
    """
    parser = option_parser(command)
    options, rest = parser.parse_known_args(list(words))
    missing = list(command.arguments)
    while missing and rest and not rest[0].startswith("-"):
        argument, values = missing.pop(0), [rest.pop(0)]
        while argument.is_repeated and rest and not rest[0].startswith("-"):
            values.append(rest.pop(0))
        setattr(options, argument.metavar.lower(), values if argument.is_repeated else values[0])
    _check_rest(command, parser, rest, missing)
    for argument in missing:
        if argument.default is None:
            raise ConfigError(f"{argument.metavar} is missing; usage: `{command.usage_line}`")
        setattr(options, argument.metavar.lower(), argument.default)
    if command.settings:
        options.settings = rest
    return options


def option_parser(command: Command) -> ArgumentParser:
    """Return a parser of the command's own options."""
    parser = _Parser(
        prog=f"moebius {command.name}",
        usage=command.usage_line,
        formatter_class=lambda prog: HelpFormatter(prog, max_help_position=28, width=text_width()),
        add_help=False,
        allow_abbrev=False,
    )
    command.add_options(parser)
    return parser


class _Parser(ArgumentParser):
    """An ArgumentParser that raises ConfigError instead of printing its usage and exiting.

    Unlike argparse's, it refuses an option that is given twice, unless all values are kept
    (`append`) or there is none (`store_true`), and it reads 1e3 as an integer, as in a setting.
    """

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.given: set[str] = set()
        """The options that have been read."""
        for action in (None, "store"):
            self.register("action", action, _StoreOnce)
        self.register("type", int, _integer)

    def error(self, message: str) -> NoReturn:
        message = message.removeprefix("argument ").replace("invalid int value", "not an integer")
        message = message.replace("invalid float value", "not a number")
        raise ConfigError(f"{message}; `{self.prog} --help` lists the options")


class _StoreOnce(Action):
    """Store the value of an option that may be given once."""

    def __call__(
        self, parser: ArgumentParser, namespace: Namespace, values: Any, option: str | None = None
    ) -> None:
        assert isinstance(parser, _Parser)
        if self.dest in parser.given:
            earlier = getattr(namespace, self.dest)
            twice = given_twice(_typed(earlier), _typed(values))
            raise ConfigError(f"{option}: {twice}; give it once")
        parser.given.add(self.dest)
        setattr(namespace, self.dest, values)


def _typed(value: object) -> str:
    """Return an option's value as a user would type it."""
    return str(value).removesuffix(".0") if isinstance(value, float) else str(value)


def _integer(text: str) -> int:
    """Return the integer that a text stands for, 1e3 included. Raises ValueError."""
    try:
        return int(text)
    except ValueError:
        number = float(text)
        if not is_exact_integer(number):
            raise
        return int(number)


def _check_rest(
    command: Command, parser: ArgumentParser, rest: Sequence[str], missing: Sequence[Argument]
) -> None:
    """Raise ConfigError for a word that is neither a setting nor the value of a setting."""
    previous, is_value = "", False
    for word in rest:
        is_flag = word.startswith("-") and not _is_negative_number(word)
        if is_flag:
            _check_flag(command, parser, word, rest)
        elif not previous.startswith("-") or "=" in previous:
            first = f"{missing[0].metavar} must come first; " if missing else ""
            several = "several values are separated by commas, A,B; " if is_value else ""
            if CONFIG in command.arguments and not several and Path(word).exists():
                several = "text is given as --data.source PATH; "
            raise ConfigError(
                f"{word!r} was not expected here; {first}{several}usage: `{command.usage_line}`"
            )
        previous, is_value = word, not is_flag


def _check_flag(command: Command, parser: ArgumentParser, flag: str, rest: Sequence[str]) -> None:
    """Raise ConfigError for a flag that cannot be a setting.

    It may be meant as a positional argument, it may be a misspelled option, or the command may not
    take any settings.
    """
    name, _, value = flag.partition("=")
    for argument in command.arguments:
        if name in argument.mistaken_flags:
            following = rest[rest.index(flag) + 1 :]
            value = value or (following[0] if following else argument.metavar)
            raise ConfigError(
                f"{name}: {argument.metavar} has no flag and comes first, as in "
                f"`moebius {command.name} {value}`"
            )
    if "." in name and command.settings:
        return
    if command.settings and is_last_part(name.removeprefix("--")):
        return  # `--steps` means train.steps, which `moebius.config` says, and not `--step`
    own = [option for action in parser._actions for option in action.option_strings]
    similar = difflib.get_close_matches(name.replace("_", "-"), own, n=1, cutoff=SIMILAR_OPTION)
    if similar:
        raise ConfigError(f"{name}: unknown option; did you mean {similar[0]}?")
    if not command.settings:
        raise ConfigError(
            f"{name}: unknown option; `moebius {command.name} --help` lists the options"
        )


def _is_negative_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
