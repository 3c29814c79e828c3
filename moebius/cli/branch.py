"""`moebius branch`: start a new run from a checkpoint of another one."""

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moebius.cli.command import RUN, Argument, Command
from moebius.cli.output import is_terminal, say
from moebius.config.branching import CHANGEABLE
from moebius.config.fields import shown
from moebius.errors import ConfigError

if TYPE_CHECKING:
    from moebius.config.flags import Values


def run(options: Namespace) -> None:
    """Make the new run, and train it to its end."""
    from moebius.config.flags import parse_flags
    from moebius.parallel.process import Process
    from moebius.train.run_directory import RunDirectory

    Process.single("`moebius branch`")
    values = _merged(_from_file(options.file), parse_flags(options.settings))
    name = _name(options.name, values)
    source = RunDirectory.open(options.run)
    from moebius.cli.report import reported
    from moebius.cli.training import train_to_end
    from moebius.train.branch import branch
    from moebius.train.session import resume

    directory = branch(source, name, values, options.step, say, is_terminal(sys.stderr))
    session = resume(directory.config(), directory, say, is_terminal(sys.stderr))
    with reported(session):
        train_to_end(session)


def _name(option: str, values: "Values") -> str:
    """Return the name of the branch. Raises ConfigError if there is none, or there are two."""
    train = values.get("train")
    setting = train.get("name") if isinstance(train, dict) else ""
    if option and setting and option != setting:
        raise ConfigError(f"--name {option}: train.name={shown(setting)} is another name")
    if not option and not setting:
        raise ConfigError("--name is missing: it names the folder of the new run")
    return option or str(setting)


def _from_file(path: str) -> "Values":
    """Return the values of a TOML file; none without a file. Raises ConfigError."""
    if not path:
        return {}
    from moebius.config.files import read_toml
    from moebius.config.removed import without_removed

    values = read_toml(Path(path))
    if "base" in values:
        raise ConfigError(f"{path}: base={shown(values['base'])}: the base of a branch is its run")
    return without_removed(values, lambda line: say(f"{path}: {line}"))


def _merged(file: "Values", flags: "Values") -> "Values":
    """Return the values of a file with those of the flags in their place."""
    merged: dict[str, Any] = dict(file)
    for name, value in flags.items():
        inner = merged.get(name)
        if isinstance(inner, dict) and isinstance(value, dict):
            value = _merged(inner, value)
        merged[name] = value
    return merged


def _add_options(parser: ArgumentParser) -> None:
    parser.add_argument("--name", default="", metavar="NAME", help="name of the new run")
    parser.add_argument(
        "--step",
        type=int,
        metavar="N",
        help="begin with the checkpoint of step N (default: the newest intact one)",
    )


COMMAND = Command(
    name="branch",
    usage="RUN [FILE] --name NAME [--step N] [--section.key value ...]",
    summary="start a new run from a checkpoint of another one",
    description=(
        "Start a new run from a checkpoint of another one, and train it. The run is only read. "
        "The new run lies beside it, begins with the same weights, optimizer state, step and next "
        "sequence, and has the settings that the step was trained with, except for those in FILE "
        "and the flags. run.json and events.jsonl say where it comes from. If it reads other text "
        "or in another order, it begins at the start of that. `moebius resume` continues it later."
    ),
    examples=(
        "moebius branch runs/my-run --step 8000 --name colder --train.lr 1e-4",
        "moebius branch runs/my-run anneal.toml --name annealed",
    ),
    arguments=(
        RUN,
        Argument("FILE", "a TOML file with the settings that the new run has anew", default=""),
    ),
    settings=CHANGEABLE,
    add_options=_add_options,
    run=run,
)
