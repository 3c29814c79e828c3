"""`moebius data`: prepare the tokenizer and the token shards ahead of training."""

import sys
from argparse import Namespace

from moebius.cli.command import CONFIG, SECTIONS, Command
from moebius.cli.output import is_terminal, say


def run(options: Namespace) -> None:
    """Prepare the data, and print what was read, its size and its location."""
    from moebius.config.files import read_config

    config = read_config(options.config, options.settings)
    from moebius.config.width import folded
    from moebius.data import prepare

    corpus = prepare(
        config.data, config.model.vocab_size, report=say, progress=is_terminal(sys.stderr)
    )
    for line in (*folded((*corpus.notes, corpus.summary()), indent=2), str(corpus.folder)):
        say(line)


COMMAND = Command(
    name="data",
    usage="[CONFIG] [--section.key value ...]",
    summary="prepare the tokenizer and the token shards without training",
    description=(
        "Prepare the tokenizer and the token shards of a configuration. `moebius train` does the "
        "same when it has to; this command does it ahead of time, on a machine without a GPU."
    ),
    examples=("moebius data standard --data.source 'corpus/*.jsonl' --data.workers 16",),
    arguments=(CONFIG,),
    settings=SECTIONS,
    run=run,
)
