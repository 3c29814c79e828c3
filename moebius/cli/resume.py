"""`moebius resume`: continue a run from its newest checkpoint."""

import sys
from argparse import Namespace

from moebius.cli.command import RUN, Command
from moebius.cli.output import is_terminal, say
from moebius.errors import ConfigError

CHANGEABLE = ("train", "parallel", "observe")


def run(options: Namespace) -> None:
    """Continue the run and train it to its end."""
    from moebius.config.files import override
    from moebius.config.flags import parse_flags
    from moebius.parallel.process import Process
    from moebius.train.run_directory import RunDirectory

    process = Process.from_environment()
    directory = RunDirectory.open(options.run)
    changes = parse_flags(options.settings)
    for section in changes.keys() - set(CHANGEABLE):
        raise ConfigError(
            f"--{section}.{next(iter(changes[section]))}: a resumed run keeps its {section}; "
            "start a new run to change it"
        )
    config = override(directory.config(), changes)
    from moebius.cli.training import train_to_end
    from moebius.train.session import resume

    train_to_end(resume(config, directory, say, is_terminal(sys.stderr), process))


COMMAND = Command(
    name="resume",
    usage="RUN [--section.key value ...]",
    summary="continue a run from its newest checkpoint",
    description=(
        "Continue a run from its newest intact checkpoint, exactly where it stopped. Settings of "
        "train, parallel and observe may change; the model and the data stay as they are."
    ),
    examples=(
        "moebius resume runs/my-run",
        "moebius resume runs/my-run --train.steps 40000    # train for longer than planned",
    ),
    arguments=(RUN,),
    settings=CHANGEABLE,
    run=run,
)
