"""`moebius export`: write a model so that other tools can use it."""

import re
from argparse import ArgumentParser, Namespace
from pathlib import Path

from moebius.cli.command import RUN, Argument, Command
from moebius.cli.output import say
from moebius.config.printable import complain
from moebius.cost.exports import DTYPES, TARGETS
from moebius.errors import ConfigError

LAST = re.compile(r"last:([1-9]\d{0,3})")
DROPPED = ("mtp",)


def run(options: Namespace) -> None:
    """Export the run's model, and print how exact the export is."""
    average = _check(options)
    from moebius.train.run_directory import RunDirectory

    directory = RunDirectory.open(options.run)
    from moebius.infer.export import ExportOptions, export

    chosen = ExportOptions(
        step=options.step,
        average=average,
        dtype=options.dtype,
        drop_mtp=options.drop == "mtp",
        license=options.license,
    )
    export(directory, options.to, Path(options.dir), chosen, say, complain)


def _check(options: Namespace) -> int:
    """Return the number of checkpoints to average. Raises ConfigError for a wrong option."""
    if options.to not in TARGETS:
        raise ConfigError(f"--to {options.to}: must be one of {', '.join(TARGETS)}")
    if options.dtype not in DTYPES:
        raise ConfigError(f"--dtype {options.dtype}: must be one of {', '.join(DTYPES)}")
    if options.drop and options.drop not in DROPPED:
        raise ConfigError(f"--drop {options.drop}: must be {', '.join(DROPPED)}")
    if not options.average:
        return 1
    match = LAST.fullmatch(options.average)
    if not match:
        raise ConfigError(f"--average {options.average}: must be last:N, such as last:5")
    return int(match[1])


def _add_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--to",
        default="hf",
        metavar="TARGET",
        help="what can load it; hf (the default) is Hugging Face transformers",
    )
    parser.add_argument(
        "--step",
        type=int,
        metavar="N",
        help="export the checkpoint of step N (default: the newest one)",
    )
    parser.add_argument(
        "--average",
        default="",
        metavar="last:N",
        help="export the mean of the last N checkpoints",
    )
    parser.add_argument(
        "--dtype",
        default="float32",
        metavar="DTYPE",
        help="float32 (the default) or bfloat16, which halves the size",
    )
    parser.add_argument(
        "--drop",
        default="",
        metavar="mtp",
        help="leave out the layer for multi-token prediction, which no target has",
    )
    parser.add_argument(
        "--license",
        "--licence",
        default="",
        metavar="NAME",
        help="license for the model card, such as apache-2.0",
    )


COMMAND = Command(
    name="export",
    usage="RUN DIR [--to hf] [options]",
    summary="write a trained model so that other tools can use it",
    description=(
        "Write the model of a run into a new folder that Hugging Face transformers, and what is "
        "built on it, loads without custom code: weights, settings, tokenizer and a model card. "
        "The folder is loaded again and its logits are compared with the run's; it only stays if "
        "they are equal up to rounding. A model that no stock architecture computes exactly is "
        "refused, with the reason; `moebius plan` and the first lines of `moebius train` say so "
        "beforehand. This needs the library transformers."
    ),
    examples=(
        "moebius export runs/my-run exported --to hf",
        "moebius export runs/my-run exported --dtype bfloat16 --average last:5",
    ),
    arguments=(RUN, Argument("DIR", "the folder to create")),
    add_options=_add_options,
    run=run,
)
