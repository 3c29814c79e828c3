"""`moebius generate`: continue a prompt with a trained model."""

import math
import sys
from argparse import ArgumentParser, Namespace
from dataclasses import replace
from typing import TYPE_CHECKING

from moebius.cli.command import RUN, Command
from moebius.cli.output import is_terminal
from moebius.config import TrainConfig
from moebius.config.printable import printable
from moebius.errors import ConfigError

if TYPE_CHECKING:
    import torch


def run(options: Namespace) -> None:
    """Print the prompt and, token by token, its continuation by the run's newest checkpoint."""
    _check(options)
    from moebius.train.run_directory import RunDirectory

    directory = RunDirectory.open(options.run)
    device = _device(directory.config().train, options.device)
    from moebius.cli.sample import continuation

    texts = continuation(
        directory,
        device,
        options.prompt,
        options.max_tokens,
        options.temperature,
        options.seed,
    )
    shown = printable if is_terminal(sys.stdout) else str
    print(shown(options.prompt), end="", flush=True)
    for text in texts:
        print(shown(text), end="", flush=True)
    print()


def _device(train: TrainConfig, name: str) -> "torch.device":
    """Return the device of that name. Raises ConfigError, as for the setting train.device."""
    from moebius.hardware.device import choose_device

    try:
        return choose_device(replace(train, device=name).device)
    except ConfigError as error:
        text = (
            str(error).replace("--train.device", "--device").replace("train.device=", "--device ")
        )
        raise ConfigError(text) from None


def _check(options: Namespace) -> None:
    """Raise ConfigError for an option whose value is not allowed."""
    if options.max_tokens < 0:
        raise ConfigError(f"--max-tokens {options.max_tokens}: must be at least 0")
    if not 0 <= options.temperature < math.inf:
        raise ConfigError(
            f"--temperature {options.temperature}: must be a finite number, at least 0"
        )
    if not 0 <= options.seed < 2**63:
        raise ConfigError(f"--seed {options.seed}: must be from 0 to 2**63 - 1")
    if any("\ud800" <= letter <= "\udfff" for letter in options.prompt):
        # Python represents bytes that are not UTF-8 as surrogates.
        raise ConfigError(f"--prompt {options.prompt!r}: must be UTF-8")


def _add_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--prompt", default="", metavar="TEXT", help="text to continue (default: none)"
    )
    parser.add_argument(
        "--max-tokens",
        type=int,
        default=200,
        metavar="N",
        help="largest number of tokens to write (default: %(default)s)",
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.8,
        metavar="T",
        help="randomness; 0, or almost 0, always takes the likeliest token (default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="seed of the sampling (default: %(default)s)",
    )
    parser.add_argument(
        "--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)"
    )


COMMAND = Command(
    name="generate",
    usage="RUN [options]",
    summary="continue a prompt with a trained model",
    description=(
        "Continue a prompt with the newest checkpoint of a run. The same seed gives the same text."
    ),
    examples=("moebius generate runs/my-run --prompt 'def fibonacci(' --max-tokens 100",),
    arguments=(RUN,),
    add_options=_add_options,
    run=run,
)
