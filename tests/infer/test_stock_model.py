"""Models that transformers has written, as models of ours."""

from pathlib import Path
from typing import Any

import pytest
import torch

from moebius.errors import CheckpointError
from moebius.infer.stock_check import compare, logits_of, stock_model
from moebius.infer.stock_files import StockTensors
from moebius.infer.stock_model import stock_model_of
from moebius.infer.stock_reading import own_tensors
from moebius.model.transformer import Transformer
from moebius.train.state import load_model
from tests.infer.stock import V, tokens

COMMON: dict[str, Any] = {
    "vocab_size": V,
    "hidden_size": 64,
    "intermediate_size": 100,  # no multiple of 64
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 40}
GLM = {
    "intermediate_size": 128,
    "moe_intermediate_size": 64,
    "n_routed_experts": 6,
    "num_experts_per_tok": 3,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 2.5,
    "use_qk_norm": True,
    "head_dim": 16,
    "num_mtp_layers": 0,
}
ERNIE = {
    "intermediate_size": 128,
    "moe_intermediate_size": 64,
    "moe_num_experts": 6,
    "moe_k": 3,
    "moe_num_shared_experts": 2,
}
PLAIN_ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
HELD = [
    ("Llama", {}),
    ("Llama", {"tie_word_embeddings": True, "head_dim": 32}),
    ("Mistral", {"sliding_window": None}),
    ("Qwen3", {"head_dim": 16}),
    ("Arcee", {}),
    ("Apertus", {"hidden_act": "gelu", **PLAIN_ROPE}),
    ("Mixtral", {"num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": None}),
    ("Qwen3Moe", {**EXPERTS, "norm_topk_prob": True, "head_dim": 16}),
    ("Qwen3Moe", {**EXPERTS, "norm_topk_prob": False, "head_dim": 16}),
    ("Ernie4_5_Moe", ERNIE),
    ("Glm4Moe", GLM),
]
LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0}
LLAMA3 |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 32}
SHARED = {**EXPERTS, "shared_expert_intermediate_size": 64}
REFUSED = [
    ("Llama", {"rope_parameters": LLAMA3}, "does not scale its rotary"),
    ("Llama", {"attention_bias": True}, "attention_bias=True"),
    ("Llama", {"hidden_act": "gelu"}, "hidden_act='gelu': must be silu"),
    ("Mistral", {"sliding_window": 16}, "sliding_window=16"),
    ("Apertus", {}, "hidden_act='xielu'"),
    ("Mixtral", {"num_experts_per_tok": 1, "sliding_window": None}, "always 1"),
    ("Qwen2Moe", SHARED, "shared_expert_gate.weight: must be 0"),
    ("Qwen3Moe", {**EXPERTS, "mlp_only_layers": [1], "head_dim": 16}, "intermediate_size=100"),
    ("Qwen3Next", {**SHARED, "head_dim": 16}, "layer_types"),
    ("Qwen3Next", {**SHARED, "head_dim": 16, "layer_types": ["full_attention"] * 3}, "q_proj"),
    ("Ernie4_5_Moe", {**ERNIE, "intermediate_size": 192}, "intermediate_size=192"),
    ("Glm4Moe", {**GLM, "n_group": 2}, "n_group=2"),
    ("Olmoe", {"num_experts": 8}, "model_type='olmoe': must be one of"),
]


def saved(name: str, changes: dict[str, Any], folder: Path) -> Path:
    """Write a random stock model, all of whose weights matter, as transformers writes it."""
    import transformers

    config = getattr(transformers, f"{name}Config")(**(COMMON | changes))
    torch.manual_seed(0)
    model: Any = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for key, tensor in (*model.named_parameters(), *model.named_buffers()):
            if "correction_bias" in key:
                tensor.normal_(std=0.1)
            elif tensor.dim() > 1:
                tensor.normal_(std=0.2)
            elif "norm" in key:
                tensor.uniform_(0.5, 1.5)
    model.save_pretrained(folder)
    return folder


def imported(folder: Path) -> Transformer:
    stock = stock_model_of(folder)
    size = stock.shape.model.vocab_size
    model = Transformer(stock.shape.model).eval()
    load_model(model, own_tensors(StockTensors(folder), stock.shape, size, stock.prepare))
    return model


@pytest.mark.parametrize(("name", "changes"), HELD, ids=str)
def test_logits_equal_those_of_the_original(name, changes, tmp_path):
    model = imported(saved(name, changes, tmp_path))
    difference = compare(model, logits_of(stock_model(tmp_path)), tokens())
    assert difference.largest < 1e-5 and difference.num_compared > 36


@pytest.mark.parametrize(("name", "changes", "reason"), REFUSED, ids=str)
def test_what_our_model_cannot_be_is_refused(name, changes, reason, tmp_path):
    with pytest.raises(CheckpointError) as refused:
        imported(saved(name, changes, tmp_path))
    assert reason in str(refused.value)
