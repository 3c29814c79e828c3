"""config.json and generation_config.json of an export.

Versions 4 and 5 of transformers read several settings under different names. Both names are
written, because a setting that a version does not find takes its default, silently.
"""

from dataclasses import asdict, replace
from typing import Any, NamedTuple

from moebius.cost.exports import (
    ERNIE,
    GLM4_MOE,
    MIXTRAL,
    QWEN2_MOE,
    QWEN3_MOE,
    QWEN3_NEXT,
)
from moebius.infer.stock_heads import Heads
from moebius.infer.stock_shape import StockShape

OWN = "moebius"
"""Key of config.json under which our own settings of the model are. Others ignore it."""
TEMPERATURE = 0.8
"""That of `moebius generate`."""
SMALLEST_SUM = 1e-30
"""Ernie divides gates by their sum, or by this if their sum is smaller."""


class TextSettings(NamedTuple):
    """What an export has to know of the text that the model was trained on."""

    vocab_size: int
    """Number of ids of the tokenizer."""
    end_of_text: int
    """Id of the token that every text begins and ends with."""
    seq_len: int
    """Length of the training sequences in tokens."""


def config_json(shape: StockShape, text: TextSettings, dtype: str) -> dict[str, Any]:
    """Return the contents of config.json. dtype is that of the weights, such as "bfloat16"."""
    model, architecture = shape.model, shape.architecture
    heads = Heads(model, architecture)
    activation = {"swiglu": "silu", "gelu": "gelu", "relu2": "relu2"}[model.activation]
    if architecture.has_gate and model.activation == "relu2":
        activation = "relu"  # relu(x) * x
    # A dense architecture needs the width of its MLPs, and the others one even without such MLPs.
    dense_width = model.base_width or shape.expert_width
    return {
        "architectures": [architecture.name],
        "model_type": architecture.model_type,
        "vocab_size": text.vocab_size,
        "hidden_size": model.dim,
        "intermediate_size": dense_width,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.num_kv_heads,
        "head_dim": heads.width,
        "hidden_act": activation,
        "max_position_embeddings": text.seq_len,
        "rms_norm_eps": model.norm_eps,
        "tie_word_embeddings": model.tie_embeddings,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": text.end_of_text,
        "eos_token_id": text.end_of_text,
        "pad_token_id": text.end_of_text,
        "use_cache": True,
        "dtype": dtype,
        "torch_dtype": dtype,
        **heads.rotation(text.seq_len),
        **_of_experts(shape),
        **_of_architecture(shape),
        OWN: asdict(replace(model, vocab_size=text.vocab_size, use_mtp=False)),
    }


def generation_json(text: TextSettings) -> dict[str, Any]:
    """Return the contents of generation_config.json.

    top_k is 0, which means all tokens, because its default in transformers is 50.
    """
    ids = {f"{name}_token_id": text.end_of_text for name in ("bos", "eos", "pad")}
    return ids | {"do_sample": True, "temperature": TEMPERATURE, "top_k": 0, "top_p": 1.0}


def _of_experts(shape: StockShape) -> dict[str, Any]:
    """Return the settings of routers and experts, under the names of all architectures."""
    if not shape.architecture.has_experts:
        return {}
    return {
        "num_experts_per_tok": shape.top_k,
        "moe_intermediate_size": shape.expert_width,
        "norm_topk_prob": shape.is_renormalized,
        "output_router_logits": False,
        "router_aux_loss_coef": shape.model.aux_loss_coeff,
    }


def _of_architecture(shape: StockShape) -> dict[str, Any]:
    """Return the settings that only this architecture has."""
    model, count = shape.model, shape.num_experts
    dense = list(shape.dense_layers)
    anywhere = {"num_experts": count, "decoder_sparse_step": 1, "mlp_only_layers": dense}
    full_attention = {"layer_types": ["full_attention"] * model.num_layers}
    no_window = {"use_sliding_window": False, "sliding_window": None}
    match shape.architecture.model_type:
        case QWEN2_MOE.model_type:
            shared = {"shared_expert_intermediate_size": shape.shared_width, "qkv_bias": True}
            return anywhere | no_window | shared | full_attention
        case QWEN3_MOE.model_type:
            return anywhere | no_window | {"num_local_experts": count}
        case QWEN3_NEXT.model_type:
            return (
                anywhere | full_attention | {"shared_expert_intermediate_size": model.base_width}
            )
        case ERNIE.model_type:
            sparse = [layer for layer in range(model.num_layers) if layer not in dense]
            return {
                "use_bias": False,
                "moe_k": shape.top_k,
                "moe_num_experts": count,
                "moe_num_shared_experts": shape.num_shared if model.base_width else 0,
                "moe_layer_start_index": sparse[0],
                "moe_layer_end_index": sparse[-1],
                "moe_layer_interval": 1,
                "moe_norm_min": SMALLEST_SUM if shape.is_renormalized else 1.0,
            }
        case GLM4_MOE.model_type:
            return {
                "n_routed_experts": count,
                "n_shared_experts": shape.num_shared if model.base_width else 0,
                "n_group": 1,
                "topk_group": 1,
                "routed_scaling_factor": 1.0,
                "first_k_dense_replace": len(dense),
                "use_qk_norm": model.qk_norm,
                "num_nextn_predict_layers": 0,
            }
        case MIXTRAL.model_type:
            return {"num_local_experts": count, "sliding_window": None}
        case "mistral":
            return {"sliding_window": None}
        case "qwen3":
            return no_window | full_attention
        case _:
            return {"mlp_bias": False}
