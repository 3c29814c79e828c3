"""The option `--device` of commands that run a trained model."""

from argparse import ArgumentParser
from dataclasses import replace
from typing import TYPE_CHECKING

from moebius.config import TrainConfig
from moebius.errors import ConfigError

if TYPE_CHECKING:
    import torch


def add_device(parser: ArgumentParser) -> None:
    """Add the option to a parser."""
    parser.add_argument(
        "--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)"
    )


def device_named(name: str, train: TrainConfig) -> "torch.device":
    """Return the device of that name. Raises ConfigError, as for the setting train.device."""
    from moebius.hardware.device import choose_device

    try:
        return choose_device(replace(train, device=name).device)
    except ConfigError as error:
        text = (
            str(error).replace("--train.device", "--device").replace("train.device=", "--device ")
        )
        raise ConfigError(text) from None
