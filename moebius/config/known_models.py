"""Presets with the shapes of published models, to plan with and to import.

Their settings of training are no recommendation; the published models were trained on trillions of
tokens.
"""

from moebius.config.model import ModelConfig
from moebius.config.train import TrainConfig
from moebius.config.tree import Config


def olmoe() -> Config:
    """The shape of OLMoE-1B-7B: 64 narrow experts, 8 per token. Here QK norm works on each head,
    and not on all heads together as in the original, so its weights cannot be imported."""
    return _known(
        vocab_size=50_304,
        dim=2048,
        num_layers=16,
        num_heads=16,
        num_kv_heads=16,
        qk_norm=True,
        moe_min_expansion=0.5,
        moe_max_expansion=0.5,
        num_experts=64,
        router_top_k=8,
        renormalize_gates=False,
        router_z_loss_coeff=0.001,
    )


def qwen3_moe_30b() -> Config:
    """The model of Qwen3-30B-A3B: 128 narrow experts, 8 per token."""
    return _known(
        vocab_size=151_936,
        dim=2048,
        num_layers=48,
        num_heads=32,
        num_kv_heads=4,
        head_dim=128,
        qk_norm=True,
        rope_theta=1e6,
        norm_eps=1e-6,
        moe_min_expansion=0.375,
        moe_max_expansion=0.375,
        num_experts=128,
        router_top_k=8,
        aux_loss_coeff=0.001,
        aux_loss_scope="global_batch",
    )


def mixtral() -> Config:
    """The model of Mixtral-8x7B: 8 large experts, 2 per token."""
    return _known(
        vocab_size=32_000,
        dim=4096,
        num_layers=32,
        num_heads=32,
        num_kv_heads=8,
        rope_theta=1e6,
        moe_min_expansion=3.5,
        moe_max_expansion=3.5,
        num_experts=8,
        router_top_k=2,
    )


def llama3_8b() -> Config:
    """The model of Llama-3-8B, which is dense."""
    return _known(
        vocab_size=128_256,
        dim=4096,
        num_layers=32,
        num_heads=32,
        num_kv_heads=8,
        rope_theta=5e5,
        base_expansion=3.5,
        num_experts=0,
    )


def _known(**model: object) -> Config:
    """Return the configuration of a published model, trained on sequences of 4,096 tokens."""
    return Config(
        model=ModelConfig(rope_fraction=1.0, **model),  # pyright: ignore[reportArgumentType]
        train=TrainConfig(
            steps=100_000,
            batch_size=256,
            micro_batch_size=1,
            seq_len=4096,
            lr=3e-4,
            warmup_steps=2000,
            dtype="bfloat16",
        ),
    )


KNOWN_MODELS = (olmoe, qwen3_moe_30b, mixtral, llama3_8b)
"""The functions of these presets; each has the preset's name."""
