"""`moebius import`: make a run of a checkpoint that other tools have written, or of an export."""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from moebius.cli.command import Argument, Command
from moebius.cli.output import say
from moebius.errors import CheckpointError, ConfigError

CHANGEABLE = (
    "model.router_jitter",
    "model.expert_dropout",
    "model.aux_loss_coeff",
    "model.aux_loss_scope",
    "model.router_z_loss_coeff",
    "model.router_bias_rate",
    "data",
    "train",
    "parallel",
    "observe",
)
"""The settings that an import takes. The others of the model follow from the checkpoint."""


def run(options: Namespace) -> None:
    """Make the run, and say how to train it."""
    from moebius.config import Config
    from moebius.config.files import read_config
    from moebius.config.flags import parse_flags

    values = parse_flags(options.settings)
    _check(values)
    for name in ("out", "name"):
        if given := getattr(options, name):
            values.setdefault("train", {})[name] = given
    base = read_config(options.base, []) if options.base else Config()
    folder = Path(options.dir)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder")
    from moebius.train.not_a_run import is_run

    if is_run(folder):
        raise CheckpointError(
            f"{folder}: a run, not an exported or published model; `moebius branch {folder}` "
            "starts a new run from it"
        )
    from moebius.infer.imported import import_stock
    from moebius.infer.upcycle import Upcycling

    upcycling = Upcycling.parse(options.upcycle) if options.upcycle else None
    directory = import_stock(folder, base, values, upcycling, say)
    say(f"run directory: {directory.root}")
    say(f"train it:      moebius resume {directory.root}")


def _check(values: dict[str, Any]) -> None:
    """Raise ConfigError for a setting that an import cannot change."""
    for section, settings in values.items():
        for name in settings:
            setting = f"{section}.{name}"
            if section not in CHANGEABLE and setting not in CHANGEABLE:
                raise ConfigError(
                    f"{setting}: follows from the checkpoint; an import takes the settings of "
                    f"{', '.join(CHANGEABLE)}"
                )


def _add_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--out", default="", metavar="FOLDER", help="folder of the new run (train.out)"
    )
    parser.add_argument("--name", default="", metavar="NAME", help="its name (train.name)")
    parser.add_argument(
        "--upcycle",
        default="",
        metavar="num_experts=N,...",
        help="turn the dense model into a mixture of N experts, copies of its MLP; with "
        "granularity=G, each copy is split into G experts; top_k=K is the number of experts per "
        "token (default: two copies, or one if they are split)",
    )


COMMAND = Command(
    name="import",
    usage="DIR [BASE] [--upcycle num_experts=N,...] [--section.key value ...]",
    summary="make a run of an exported or published model, to train it further",
    description=(
        "Make a run of the model in a folder: an export, or a checkpoint of Hugging Face "
        "transformers of one of the architectures that models are exported to. The run starts at "
        "step 0 with the model's weights and a fresh optimizer, and `moebius resume` trains it. "
        "The logits are those of the original; a checkpoint that has anything more, such as "
        "biases, is refused. Without BASE, the settings of training have their defaults. The "
        "tokenizer is that of the model."
    ),
    examples=(
        "moebius import exported --name further --data.source 'corpus/*.jsonl'",
        "moebius import dense-model --upcycle num_experts=8,granularity=2",
    ),
    arguments=(
        Argument("DIR", "the folder of the model"),
        Argument("BASE", "a preset or a TOML file whose settings the run gets", default=""),
    ),
    settings=CHANGEABLE,
    add_options=_add_options,
    run=run,
)
