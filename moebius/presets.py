"""Ready configurations. `preset(name)` is a complete Config; any field of it can be overridden."""

import difflib
from collections.abc import Callable
from dataclasses import replace

from moebius.config import Config, DataConfig, ModelConfig, ParallelConfig, TrainConfig, hidden_width
from moebius.errors import ConfigError


def preset(name: str) -> Config:
    """The preset of that name. Raises ConfigError with the nearest name for an unknown one."""
    if name not in PRESETS:
        close = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ConfigError(f"preset {name!r}: one of {', '.join(PRESETS)}, or a TOML file{hint}")
    return PRESETS[name]()


def tiny() -> Config:
    """Learns Python from the standard library in about two minutes on two CPU cores."""
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
    """The founding document's original: a base MLP on every token, a pyramid of small experts above it, sigmoid router, MTP."""
    return _large(
        base_expansion=1.25,
        moe_min_expansion=1.25,
        moe_max_expansion=1.75,
        num_experts=3,
        router_type="sigmoid",
        use_mtp=True,
    )


def standard() -> Config:
    """The founding document's recommendation for speed: no base MLP, one of four large experts, strong balancing."""
    return _large(
        base_expansion=0.0,
        moe_min_expansion=3.0,
        moe_max_expansion=4.0,
        router_type="softmax_topk",
        router_top_k=1,
        aux_loss_coeff=0.1,
    )


def stability() -> Config:
    """The founding document's recommendation for stability: half a base MLP under a permissive sigmoid router."""
    return _large(
        base_expansion=0.5,
        moe_min_expansion=2.0,
        moe_max_expansion=3.0,
        router_type="sigmoid",
        router_threshold=0.1,
    )


def switch() -> Config:
    """`standard` with the Switch Transformer's router: a full expert drops what comes after."""
    config = standard()
    return replace(config, model=replace(config.model, router_type="switch"))


def dense() -> Config:
    """The dense twin of `standard`: the same active parameters, no experts."""
    config = standard()
    return replace(config, model=dense_twin(config.model))


def dense_112m() -> Config:
    """The founding document's 112M dense baseline. It does not say how they are spent; here: 48.2M attention (24 layers of
    28/7 heads) and 63.3M in two-matrix GELU MLPs of width 1472, 111.5M in all beside the embedding and the LM head."""
    return _large(num_experts=0, base_expansion=1.64, activation="gelu")


PRESETS: dict[str, Callable[[], Config]] = {
    function.__name__: function for function in (tiny, pr_moe, standard, stability, switch, dense, dense_112m)
}


def dense_twin(model: ModelConfig) -> ModelConfig:
    """The dense model with the same active MLP parameters: one base MLP as wide as all a token passes through.

    The width is the mean over the layers, rounded to 64; routers, which a dense model has none of, are left out.
    """
    shapes = zip(model.experts_per_layer, model.expert_widths, strict=True)
    routed = [model.experts_per_token(count) * width for count, width in shapes]
    mean_width = model.base_width + sum(routed) / model.num_layers
    width = hidden_width(mean_width / model.dim, model.dim)
    return replace(model, num_experts=0, base_expansion=width / model.dim, residual_mix="add")


def _large(**model: object) -> Config:
    """What the big presets share: 24 layers of 896, 28 query and 7 KV heads, 75% rotary, bfloat16."""
    return Config(
        model=ModelConfig(**model),  # pyright: ignore[reportArgumentType]
        train=TrainConfig(
            steps=20_000, batch_size=64, micro_batch_size=8, seq_len=2048, lr=6e-4, warmup_steps=500, dtype="bfloat16"
        ),
    )
