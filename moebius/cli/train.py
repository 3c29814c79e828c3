"""`moebius train`: pretrain a model."""

import sys
from argparse import Namespace

from moebius.cli.command import CONFIG, SECTIONS, Command
from moebius.cli.output import is_terminal, say


def run(options: Namespace) -> None:
    """Start a run and train it to its end."""
    from moebius.config.files import read_config
    from moebius.parallel.process import Process

    process = Process.from_environment()
    with process.first_speaks():
        config = read_config(options.config, options.settings)
    from moebius.cli.report import reported
    from moebius.cli.training import train_to_end
    from moebius.parallel.group import joined
    from moebius.train.session import start

    with joined(process, config.parallel.timeout) as peers, peers.announced():
        session = start(config, options.config, say, is_terminal(sys.stderr), peers)
        with reported(session), peers.announced():
            train_to_end(session)


COMMAND = Command(
    name="train",
    usage="[CONFIG] [--section.key value ...]",
    summary="pretrain a model",
    description=(
        "Pretrain a model. The tokenizer and the tokens of the text are prepared first, unless "
        "they are there already. Configuration, metrics and checkpoints are kept in the directory "
        "of the run. `moebius resume` continues a run that was stopped."
    ),
    examples=(
        "moebius train                                     # the preset tiny",
        "moebius train standard --data.source 'corpus/*.jsonl' --train.steps 5000",
        "moebius train my.toml --train.lr 3e-4             # flags win over the file",
    ),
    arguments=(CONFIG,),
    settings=SECTIONS,
    run=run,
)
