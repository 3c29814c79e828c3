"""Moebius pretrains mixture-of-experts language models and shows where the compute goes."""

from typing import TYPE_CHECKING, Any

from moebius.config import (
    Config,
    DataConfig,
    ModelConfig,
    ObserveConfig,
    ParallelConfig,
    TrainConfig,
)
from moebius.config.presets import dense_twin, preset

if TYPE_CHECKING:
    from moebius.model.transformer import Transformer

__version__ = "0.1.0"
__all__ = [
    "Config",
    "DataConfig",
    "ModelConfig",
    "ObserveConfig",
    "ParallelConfig",
    "TrainConfig",
    "Transformer",
    "dense_twin",
    "preset",
]


def __getattr__(name: str) -> Any:
    # Importing torch takes seconds, which `moebius --help` and a configuration must not wait for.
    if name == "Transformer":
        from moebius.model.transformer import Transformer

        return Transformer
    raise AttributeError(f"module 'moebius' has no attribute {name!r}")
