"""Moebius pretrains mixture-of-experts language models and shows where the compute goes."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from moebius.config import (
        Config,
        DataConfig,
        ModelConfig,
        ObserveConfig,
        ParallelConfig,
        TrainConfig,
    )
    from moebius.config.presets import dense_twin, preset
    from moebius.infer.language_model import LanguageModel, load
    from moebius.model.transformer import Transformer

__version__ = "0.1.0"
__all__ = [
    "Config",
    "DataConfig",
    "LanguageModel",
    "ModelConfig",
    "ObserveConfig",
    "ParallelConfig",
    "TrainConfig",
    "Transformer",
    "dense_twin",
    "load",
    "preset",
]


def __getattr__(name: str) -> "Any":
    # `moebius --help` and a configuration must not wait seconds for torch. And nothing at all is
    # imported before `__main__` has taken the working directory out of the path.
    if name == "Transformer":
        from moebius.model import transformer

        return transformer.Transformer
    if name in ("LanguageModel", "load"):
        from moebius.infer import language_model

        return getattr(language_model, name)
    if name in ("dense_twin", "preset"):
        from moebius.config import presets

        return getattr(presets, name)
    if name in __all__:
        from moebius import config

        return getattr(config, name)
    raise AttributeError(f"module 'moebius' has no attribute {name!r}")
