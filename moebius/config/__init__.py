"""The typed configuration of a run. Nothing here imports torch."""

from moebius.config.data import DataConfig
from moebius.config.model import (
    MTP_OFFSETS,
    WIDTH_MULTIPLE,
    Activation,
    ModelConfig,
    RouterType,
    hidden_width,
)
from moebius.config.observe import ObserveConfig
from moebius.config.parallel import ParallelConfig
from moebius.config.train import TrainConfig
from moebius.config.tree import Config

__all__ = [
    "MTP_OFFSETS",
    "WIDTH_MULTIPLE",
    "Activation",
    "Config",
    "DataConfig",
    "ModelConfig",
    "ObserveConfig",
    "ParallelConfig",
    "RouterType",
    "TrainConfig",
    "hidden_width",
]
