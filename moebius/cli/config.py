"""`moebius config`: print a configuration with every value in it."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from moebius.cli.command import CONFIG, SECTIONS, Command

if TYPE_CHECKING:
    from moebius.config import Config


def run(options: Namespace) -> None:
    """Print the configuration as TOML that every command accepts as its CONFIG."""
    from moebius.config.files import to_toml

    print(to_toml(named_config(options.config, options.settings)), end="")


def named_config(name: str, flags: Sequence[str] = ()) -> "Config":
    """Return the configuration of a preset, TOML file or run directory, changed by flags.

    Raises ConfigError if there is nothing of that name, or if a flag is wrong.
    """
    from moebius.config.files import read_config

    of_run = Path(name) / "config.toml"
    return read_config(str(of_run) if of_run.is_file() else name, list(flags))


COMMAND = Command(
    name="config",
    usage="[CONFIG] [--section.key value ...]",
    summary="print a configuration as TOML, with every value in it",
    description=(
        "Print a configuration as TOML: every setting, as the preset or file and the flags set "
        "it. Saved as a file, the output is a CONFIG for every command. The directory of a run "
        "stands for the configuration of that run."
    ),
    examples=(
        "moebius config standard --train.lr 3e-4 > my.toml",
        "moebius config runs/my-run",
    ),
    arguments=(CONFIG,),
    settings=SECTIONS,
    run=run,
)
