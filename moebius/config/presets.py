"""Ready-made configurations: `preset(name)` returns a complete Config to use or to change.

A new preset is a function here and a line in PRESETS. Its docstring is what the help shows.
"""

from collections.abc import Callable
from dataclasses import replace

from moebius.config.data import DataConfig
from moebius.config.known_models import KNOWN_MODELS
from moebius.config.model import ModelConfig, hidden_width
from moebius.config.parallel import ParallelConfig
from moebius.config.suggestions import nearest
from moebius.config.train import TrainConfig
from moebius.config.tree import Config
from moebius.errors import ConfigError


def preset(name: str) -> Config:
    """Return the preset of that name.

    Raises ConfigError, with the most similar name, for an unknown one.
    """
    if name not in PRESETS:
        raise ConfigError(
            f"preset {name!r}: must be one of {', '.join(PRESETS)}, or a TOML file"
            f"{nearest(name, PRESETS)}"
        )
    return PRESETS[name]()


def tiny() -> Config:
    """Learns Python from its own library, in minutes on two cores."""
    return Config(
        model=ModelConfig(
            vocab_size=2048,
            dim=128,
            num_layers=4,
            num_heads=2,
            num_kv_heads=1,
            moe_min_expansion=1.0,
            moe_max_expansion=1.0,
            num_experts=12,
            router_top_k=3,
            aux_loss_coeff=0.1,
        ),
        data=DataConfig(),
        train=TrainConfig(
            steps=400,
            batch_size=8,
            seq_len=256,
            lr=6e-3,
            warmup_steps=20,
            eval_every=100,
            eval_tokens=100_000,
            checkpoint_every=100,
        ),
        parallel=ParallelConfig(compile="off"),  # compiling would take longer than the run
    )


def pr_moe() -> Config:
    """PR-MoE, the slow original: a base MLP beside a pyramid of small experts, the sigmoid
    router, and multi-token prediction."""
    return _large(
        base_expansion=1.25,
        moe_min_expansion=1.25,
        moe_max_expansion=1.75,
        num_experts=3,
        router_type="sigmoid",
        use_mtp=True,
    )


def standard() -> Config:
    """Recommended for speed: no base MLP, one of four large experts per token, and a strong
    load-balancing loss."""
    return _large(
        base_expansion=0.0,
        moe_min_expansion=3.0,
        moe_max_expansion=4.0,
        router_type="softmax_topk",
        router_top_k=1,
        aux_loss_coeff=0.1,
    )


def stability() -> Config:
    """Recommended for stability: a small base MLP, and a sigmoid router with a low threshold."""
    return _large(
        base_expansion=0.5,
        moe_min_expansion=2.0,
        moe_max_expansion=3.0,
        router_type="sigmoid",
        router_threshold=0.1,
    )


def switch() -> Config:
    """`standard` with the Switch Transformer's router: a full expert drops the tokens that come
    last."""
    config = standard()
    return replace(config, model=replace(config.model, router_type="switch"))


def dense() -> Config:
    """The dense twin of `standard`: as many active parameters, no experts."""
    config = standard()
    return replace(config, model=dense_twin(config.model))


def dense_112m() -> Config:
    """Dense, with GELU: 112M parameters in attention and MLPs."""
    return _large(num_experts=0, base_expansion=1.64, activation="gelu")


PRESETS: dict[str, Callable[[], Config]] = {
    function.__name__: function
    for function in (tiny, pr_moe, standard, stability, switch, dense, dense_112m, *KNOWN_MODELS)
}


def dense_twin(model: ModelConfig) -> ModelConfig:
    """Return the dense model that has as many active MLP parameters as `model`.

    The width of its base MLP is the total width of the base MLP and the experts that a token
    passes through, averaged over the layers and rounded to a multiple of 64. Routers do not count,
    because a dense model has none.
    """
    shapes = zip(model.experts_per_layer, model.expert_widths, strict=True)
    routed = [model.experts_per_token(count) * width for count, width in shapes]
    mean_width = model.base_width + sum(routed) / model.num_layers
    width = hidden_width(mean_width / model.dim, model.dim)
    return replace(model, num_experts=0, base_expansion=width / model.dim, residual_mix="add")


def _large(**model: object) -> Config:
    """Return the configuration that the large presets share, with these settings of the model.

    They share 24 layers of width 896, 28 query heads and 7 KV heads, a rotary embedding on three
    quarters of each head, and bfloat16.
    """
    return Config(
        model=ModelConfig(**model),  # pyright: ignore[reportArgumentType]
        train=TrainConfig(
            steps=20_000,
            batch_size=64,
            micro_batch_size=8,
            seq_len=2048,
            lr=6e-4,
            warmup_steps=500,
            dtype="bfloat16",
        ),
    )
