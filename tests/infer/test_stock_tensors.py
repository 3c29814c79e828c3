"""Conversions between our tensors and stock ones: each rewrite matters, and each is undone."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from moebius.cost.exports import holder
from moebius.errors import CheckpointError
from moebius.infer import stock_heads, stock_tensors
from moebius.infer.export import write_stock
from moebius.infer.stock_check import compare, logits_of, stock_model
from moebius.infer.stock_config import TextSettings
from moebius.infer.stock_files import StockTensors
from moebius.infer.stock_reading import own_tensors
from moebius.infer.stock_shape import StockShape
from moebius.model.transformer import Transformer
from moebius.train.state import load_model, model_tensors
from tests.infer.stock import S, V, model_config, tokens, transformer

BASE = {"base_expansion": 1.0}
SIGMOID = {"router_score": "sigmoid"}
DENSE = {"num_experts": 0, "base_expansion": 2.0, "router_top_k": 1}
MODELS = [
    ({}, 0.0),
    ({**BASE, "num_experts": (0, 4, 0), "activation": "relu2"}, 0.0),
    ({"num_experts": (1, 2, 4), "router_top_k": 1, "gate_scale": 0.0}, 0.05),
    ({**BASE, "num_experts": (0, 4, 0)}, 0.05),
    ({**BASE, "num_experts": (4, 0, 4)}, 0.05),
    ({"rope_scope": "heads", "rope_fraction": 0.5}, 0.05),
    ({"qk_norm": True, "rope_scope": "heads", "rope_fraction": 0.5}, 0.0),
    ({"qk_norm": True, **BASE}, 0.0),
    ({**SIGMOID, "num_experts": (3, 0, 4), **BASE, "qk_norm": True}, 0.05),
    ({**SIGMOID, "num_experts": 1, "router_top_k": 1}, 0.0),
    ({**DENSE, "tie_embeddings": True}, 0.0),
    ({**DENSE, "qk_norm": True, "activation": "gelu"}, 0.0),
]


def shape_of(model: Transformer, bias: float) -> StockShape:
    architecture = holder(model.config, bool(bias)).architecture
    assert architecture is not None
    return StockShape(model.config, architecture)


def written(model: Transformer, bias: float, folder: Path) -> StockShape:
    """Write the stock model of ours into a folder."""
    shape = shape_of(model, bias)
    write_stock(folder, shape, model_tensors(model), TextSettings(V, 0, S))
    return shape


def difference(model: Transformer, folder: Path) -> float:
    return compare(model, logits_of(stock_model(folder)), tokens()).largest


@pytest.mark.parametrize(("changes", "bias"), MODELS, ids=str)
def test_our_tensors_come_back(changes, bias, tmp_path):
    model = transformer(model_config(**changes), bias)
    shape = written(model, bias, tmp_path)
    own = model_tensors(model)
    back = own_tensors(StockTensors(tmp_path), shape, V)
    assert back.keys() == own.keys()
    for name, tensor in back.items():
        assert tensor.shape == own[name].shape
        assert torch.allclose(tensor, own[name], rtol=1e-6, atol=1e-7), name
    assert difference(model, tmp_path) < 1e-5


@pytest.mark.parametrize(
    ("changes", "bias", "name", "value"),
    [
        ({}, 0.0, "stock_heads.NO_ROTATION", 1.0),
        ({**SIGMOID, "num_experts": (2, 2, 4)}, 0.0, "stock_tensors.NEVER", 0.0),
        ({"rope_scope": "heads", "rope_fraction": 0.5}, 0.0, "Heads.query_factor", 1.0),
        ({"rope_scope": "heads", "rope_fraction": 0.5}, 0.0, "Heads.is_mixed", False),
        ({"num_experts": (2, 2, 4), "router_top_k": 1}, 0.0, "StockShape.gate_factor", None),
        ({"gate_scale": 2.0}, 0.0, "StockShape.gate_factor", None),
        ({"renormalize_gates": False}, 0.0, "StockShape.is_renormalized", True),
    ],
    ids=str,
)
def test_without_a_rewrite_the_logits_differ(changes, bias, name, value, tmp_path, monkeypatch):
    model = transformer(model_config(**changes), bias)
    owner, _, attribute = name.partition(".")
    if owner in ("Heads", "StockShape"):
        found = stock_heads.Heads if owner == "Heads" else StockShape
        wrong = (lambda self, layer: 1.0) if value is None else property(lambda self: value)
        monkeypatch.setattr(found, attribute, wrong)
    else:
        module = {"stock_heads": stock_heads, "stock_tensors": stock_tensors}[owner]
        monkeypatch.setattr(module, attribute, value)
    written(model, bias, tmp_path)
    assert difference(model, tmp_path) > 1e-3


def test_unused_rows_of_the_vocabulary_are_left_out(tmp_path):
    model = transformer(model_config(vocab_size=V + 31))
    written(model, 0.0, tmp_path)
    shape = StockShape(replace(model.config, vocab_size=V), shape_of(model, 0.0).architecture)
    trimmed = Transformer(shape.model).eval()
    load_model(trimmed, own_tensors(StockTensors(tmp_path), shape, V))
    assert difference(trimmed, tmp_path) < 1e-5
    with torch.no_grad():
        logits, all_logits = trimmed(tokens()).logits_BSV, model(tokens()).logits_BSV
    assert torch.allclose(logits, all_logits[..., :V], atol=1e-6)


def test_settings_of_both_generations(tmp_path):
    written(transformer(model_config(qk_norm=True)), 0.0, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["num_experts"] == config["num_local_experts"] == 4
    assert config["dtype"] == config["torch_dtype"] == "float32"
    written(transformer(model_config(**SIGMOID)), 0.0, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["num_nextn_predict_layers"] == 0 and config["n_group"] == 1


def test_a_choice_bias_that_is_dropped_is_noticed(tmp_path):
    """The bias that an alarm has left in a model decides which architecture it is exported to."""
    model = transformer(model_config(), bias=0.05)
    assert shape_of(model, 0.05).architecture.model_type == "ernie4_5_moe"
    written(model, 0.0, tmp_path)
    assert difference(model, tmp_path) > 1e-3
    written(model, 0.05, tmp_path)
    assert difference(model, tmp_path) < 1e-5


def test_a_tensor_that_says_more_than_ours_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    shape = written(transformer(model_config()), 0.0, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    bias = "model.layers.1.self_attn.q_proj.bias"
    narrow = "model.layers.0.mlp.experts.1.up_proj.weight"  # padded, because the layer is narrow
    for name in (bias, narrow):
        save_file(tensors | {name: tensors[name] + 0.1}, tmp_path / "model.safetensors")
        with pytest.raises(CheckpointError, match=name):
            own_tensors(StockTensors(tmp_path), shape, V)
    del tensors[bias]  # a missing bias is 0
    save_file(tensors, tmp_path / "model.safetensors")
    own_tensors(StockTensors(tmp_path), shape, V)
