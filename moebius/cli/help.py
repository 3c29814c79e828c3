"""The texts of `moebius --help` and `moebius COMMAND --help`."""

import argparse
from collections.abc import Iterator, Sequence
from textwrap import fill, indent, wrap

from moebius.cli.command import CONFIG, RUN, Command
from moebius.cli.parse import option_parser
from moebius.cli.registry import commands
from moebius.config.width import text_width

FIRST_STEPS = (
    ("moebius doctor", "check this machine, a minute or, on a slow one, several"),
    ("moebius train", "train a tiny model, three minutes on two CPU cores"),
    ("moebius train --help", "the presets and every setting"),
)

FIRST = "Pretrain mixture-of-experts language models and see where every FLOP goes."
LAST = (
    "`moebius COMMAND --help` explains a command, and `moebius --version` prints the version. "
    "With --debug, any command shows the traceback of an error."
)


def overview() -> str:
    """Return the list of commands, each with its summary."""
    rows = [(command.name, command.summary) for command in commands().values()]
    return "\n".join(
        (
            "usage: moebius COMMAND ...\n",
            fill(FIRST, text_width()) + "\n",
            "commands:",
            *_columns(rows),
            "\nfirst steps:",
            *_columns(FIRST_STEPS),
            "",
            fill(LAST, text_width()),
        )
    )


def command_help(command: Command, words: Sequence[str]) -> str:
    """Return the help of a command: what a newcomer needs comes first, and the settings last.

    If the words name a preset, a TOML file or a run, the settings are shown with its values.
    """
    usage = fill(
        f"usage: {command.usage_line}",
        text_width(),
        subsequent_indent=" " * len(f"usage: moebius {command.name} "),
        break_on_hyphens=False,
    )
    parts = [usage, fill(command.description, text_width())]
    if CONFIG in command.arguments:
        parts.append(_presets())
    parts += [
        fill(f"{argument.metavar} is {argument.help}", text_width())
        for argument in command.arguments
        if argument != CONFIG
    ]
    parts.append("examples:\n" + indent("\n".join(command.examples), "  "))
    parts.append(_options(command))
    if command.settings:
        parts.append(_settings(command, words))
    return "\n\n".join(part for part in parts if part)


def _presets() -> str:
    from moebius.config.presets import PRESETS

    rows = [(name, _first_sentence(function.__doc__ or "")) for name, function in PRESETS.items()]
    heading = f"{CONFIG.metavar} is {CONFIG.help}, by default {CONFIG.default}. The presets:"
    return "\n".join((fill(heading, text_width()), *_columns(rows)))


def _first_sentence(docstring: str) -> str:
    first, dot, _ = " ".join(docstring.split()).partition(". ")
    return first + dot.strip()


def _options(command: Command) -> str:
    parser = option_parser(command)
    parser.usage = argparse.SUPPRESS
    return parser.format_help().strip()


def _settings(command: Command, words: Sequence[str]) -> str:
    from moebius.cli.config import named_config
    from moebius.config import Config
    from moebius.config.help import settings_help

    name = words[0] if words and not words[0].startswith("-") else ""
    config, whose = Config(), "the defaults"
    if CONFIG in command.arguments:
        name = name or CONFIG.default or ""
        config, whose = named_config(name), f"those of {name}"
    elif RUN in command.arguments and name:
        from moebius.train.run_directory import RunDirectory

        config, whose = RunDirectory.open(name).config(), f"those of {name}"
    heading = f"settings, each given as --section.key value (the values shown are {whose}):"
    heading = fill(heading, text_width(), break_on_hyphens=False)
    return f"{heading}\n\n{settings_help(config, command.settings)}"


def _columns(rows: Sequence[tuple[str, str]]) -> Iterator[str]:
    """Yield the rows as two aligned and indented columns, with the second one wrapped."""
    width = max(len(left) for left, _ in rows) + 4
    for left, right in rows:
        lines = wrap(right, text_width() - width) or [""]
        yield f"  {left:<{width - 2}}{lines[0]}"
        yield from (" " * width + line for line in lines[1:])
