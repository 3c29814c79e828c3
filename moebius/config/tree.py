"""The configuration of a whole run, as frozen dataclasses that check themselves when created."""

from dataclasses import dataclass, field

from moebius.config.data import DataConfig
from moebius.config.fields import check_fields
from moebius.config.model import ModelConfig
from moebius.config.observe import ObserveConfig
from moebius.config.parallel import ParallelConfig
from moebius.config.phases import check_weights
from moebius.config.train import TrainConfig
from moebius.errors import ConfigError

FLOAT8_MULTIPLE = 16
"""Inner and outer sizes of float8 matrix products must be multiples of this (cuBLAS)."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole run: model, text, training, hardware and alarms.

    Every section is checked when it is created, so any Config that exists can be run.
    `moebius.config.presets` has ready-made ones, and `moebius.config.files` reads them from files
    and flags.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    observe: ObserveConfig = field(default_factory=ObserveConfig)

    def __post_init__(self) -> None:
        check_fields("config", self)
        check_weights(self.train.phases, self.data)
        has_float8 = self.train.expert_dtype == "float8" and any(self.model.experts_per_layer)
        if has_float8 and self.model.dim % FLOAT8_MULTIPLE:
            raise ConfigError(
                f"train.expert_dtype='float8': needs a model.dim that is a multiple of "
                f"{FLOAT8_MULTIPLE}, not {self.model.dim}"
            )
        if self.data.vocab_size > self.model.vocab_size:
            raise ConfigError(
                f"data.vocab_size={self.data.vocab_size}: must be at most model.vocab_size "
                f"({self.model.vocab_size}); set --model.vocab_size {self.data.vocab_size}"
            )
