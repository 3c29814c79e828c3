"""Our configuration of the model in a stock checkpoint, from its config.json.

An export has our own settings in it. Those of any other checkpoint are derived; what our model
does not have is refused by name.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor

from moebius.config import ModelConfig
from moebius.config.model import hidden_width
from moebius.cost.exports import (
    ARCHITECTURES,
    ERNIE,
    GLM4_MOE,
    MIXTRAL,
    QWEN3_MOE,
    QWEN3_NEXT,
    Architecture,
)
from moebius.errors import CheckpointError, ConfigError
from moebius.infer.stock_config import OWN, TextSettings, config_json
from moebius.infer.stock_files import CONFIG, read_json
from moebius.infer.stock_shape import StockShape

FREE = {"dtype", "torch_dtype", "architectures", "router_aux_loss_coef", "max_position_embeddings"}
"""Settings of config.json that may differ from what was exported: they change no logit."""


class StockModel(NamedTuple):
    """The model in a stock checkpoint."""

    shape: StockShape
    seq_len: int
    """Number of positions that it was made for."""
    prepare: Callable[[str, Tensor], Tensor]
    """Returns a stock tensor, given by name, in the sizes of `shape`."""


class _Settings:
    """The settings of a config.json. A missing one is an error, because defaults differ."""

    def __init__(self, path: Path):
        self.path = path
        self.values = read_json(path)

    def __getitem__(self, name: str) -> Any:
        if name not in self.values:
            raise CheckpointError(f"{self.path}: {name} is missing")
        return self.values[name]

    def get(self, name: str, default: Any = None) -> Any:
        return self.values.get(name, default)

    def refuse(self, name: str, reason: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: {name}={self.values.get(name)!r}: {reason}")

    def require(self, name: str, *allowed: Any) -> None:
        """Raise CheckpointError if a setting is there and has none of the allowed values."""
        if name in self.values and self.values[name] not in allowed:
            raise self.refuse(name, "a model of Moebius has nothing like it")


def stock_model_of(folder: Path) -> StockModel:
    """Return the model in the folder of a stock checkpoint.

    Raises CheckpointError, which names the setting, if it is not one that our model can be.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise CheckpointError(f"{folder}: no checkpoint here; there is no {CONFIG}")
    settings = _Settings(path)
    kind = settings["model_type"]
    architecture = ARCHITECTURES.get(kind) if isinstance(kind, str) else None
    if architecture is None:
        raise settings.refuse("model_type", f"must be one of {', '.join(ARCHITECTURES)}")
    try:
        if settings.get(OWN) is not None:
            return _exported(settings, architecture)
        return _derived(settings, architecture)
    except (ConfigError, TypeError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: not a model of Moebius: {reason}") from None


def _exported(settings: _Settings, architecture: Architecture) -> StockModel:
    """Return the model of an export, whose other settings must still be those that follow."""
    values = dict(settings[OWN])
    if isinstance(values.get("num_experts"), list):
        values["num_experts"] = tuple(values["num_experts"])
    model = ModelConfig(**values)
    shape, seq_len = StockShape(model, architecture), settings["max_position_embeddings"]
    text = TextSettings(model.vocab_size, settings["eos_token_id"], seq_len)
    for name, value in config_json(shape, text, "").items():
        # A later version of transformers may have written the file anew, with fewer names.
        differs = name in settings.values and settings.values[name] != value
        if differs and name not in FREE and name != OWN and name != "rope_scaling":
            raise settings.refuse(name, f"was {value!r} when the model was exported")
    return StockModel(shape, seq_len, lambda name, tensor: tensor)


def _derived(settings: _Settings, architecture: Architecture) -> StockModel:
    settings.require("attention_bias", False, None)
    settings.require("mlp_bias", False, None)
    settings.require("use_bias", False, None)
    dim, num_heads = settings["hidden_size"], settings["num_attention_heads"]
    seq_len = settings["max_position_embeddings"]
    window = settings.get("sliding_window")
    if window and window < seq_len and settings.get("use_sliding_window", True):
        raise settings.refuse("sliding_window", "attention of a model of Moebius has no window")
    gated = {"silu": "swiglu"}
    activations = gated if architecture.has_gate else {"relu2": "relu2", "gelu": "gelu"}
    if settings["hidden_act"] not in activations:
        raise settings.refuse("hidden_act", f"must be {' or '.join(activations)}")
    has_qk_norm = settings["use_qk_norm"] if architecture is GLM4_MOE else architecture.has_qk_norm
    head_dim = settings.get("head_dim") or dim // num_heads
    theta, rotary_dims = _rotary(settings, architecture, head_dim)
    experts, width, shared = _experts(settings, architecture)
    model = ModelConfig(
        vocab_size=settings["vocab_size"],
        dim=dim,
        num_layers=settings["num_hidden_layers"],
        num_heads=num_heads,
        num_kv_heads=settings.get("num_key_value_heads") or num_heads,
        head_dim=0 if head_dim * num_heads == dim else head_dim,
        qk_norm=has_qk_norm,
        rope_theta=theta,
        rope_fraction=rotary_dims / head_dim,
        activation=activations[settings["hidden_act"]],  # pyright: ignore[reportArgumentType]
        norm_eps=settings["rms_norm_eps"],
        tie_embeddings=bool(settings["tie_word_embeddings"]),
        base_expansion=_whole(shared, dim) / dim if shared else 0.0,
        **({"moe_min_expansion": _whole(width, dim) / dim} if width else {}),
        **({"moe_max_expansion": _whole(width, dim) / dim} if width else {}),
        **experts,
    )
    shape = StockShape(model, architecture)
    return StockModel(shape, seq_len, _preparation(shape, experts.get("gate_scale", 1.0)))


def _rotary(settings: _Settings, architecture: Architecture, head_dim: int) -> tuple[float, int]:
    """Return rope_theta and the number of rotated dimensions."""
    new = settings.get("rope_parameters") or {}
    old = settings.get("rope_scaling") or {}
    for name, values in (("rope_parameters", new), ("rope_scaling", old)):
        if values.get("rope_type", values.get("type", "default")) != "default":
            raise settings.refuse(name, "a model of Moebius does not scale its rotary frequencies")
    theta = new.get("rope_theta") or settings["rope_theta"]
    if architecture.rotary != "partial":
        return float(theta), head_dim
    factor = new.get("partial_rotary_factor") or settings["partial_rotary_factor"]
    return float(theta), int(head_dim * factor)


def _experts(settings: _Settings, architecture: Architecture) -> tuple[dict[str, Any], int, int]:
    """Return the settings of our experts, their width, and the width of the base MLP."""
    if not architecture.has_experts:
        return {"num_experts": 0}, 0, settings["intermediate_size"]
    layers = range(settings["num_hidden_layers"])
    is_dense: Callable[[int], bool] = lambda layer: False  # noqa: E731
    scale = 1.0
    if architecture is MIXTRAL:
        count, width, shared = settings["num_local_experts"], settings["intermediate_size"], 0
        renormalize = True
    elif architecture is ERNIE:
        count, width = settings["moe_num_experts"], settings["moe_intermediate_size"]
        shared = width * settings["moe_num_shared_experts"]
        renormalize = settings["moe_norm_min"] < 1
        settings.require("moe_layer_interval", 1)
        first, last = settings["moe_layer_start_index"], settings["moe_layer_end_index"]
        last = len(layers) - 1 if last == -1 else last
        is_dense = lambda layer: not first <= layer <= last  # noqa: E731
    elif architecture is GLM4_MOE:
        count, width = settings["n_routed_experts"], settings["moe_intermediate_size"]
        shared = width * settings["n_shared_experts"]
        renormalize, scale = settings["norm_topk_prob"], settings["routed_scaling_factor"]
        settings.require("n_group", 1)
        is_dense = lambda layer: layer < settings["first_k_dense_replace"]  # noqa: E731
    else:
        count = settings.get("num_experts") or settings["num_local_experts"]
        width, renormalize = settings["moe_intermediate_size"], settings["norm_topk_prob"]
        shared = settings.get("shared_expert_intermediate_size", 0)
        step, dense = settings.get("decoder_sparse_step", 1), settings.get("mlp_only_layers") or []
        is_dense = lambda layer: layer in dense or (layer + 1) % step != 0  # noqa: E731
        if architecture is QWEN3_MOE:
            shared = 0
        if architecture is QWEN3_NEXT and set(settings["layer_types"]) != {"full_attention"}:
            raise settings.refuse("layer_types", "every layer must be full_attention")
    top_k = settings["moe_k" if architecture is ERNIE else "num_experts_per_tok"]
    if renormalize and top_k == 1:
        raise CheckpointError(
            f"{settings.path}: gates of one expert per token are always 1; in a model of Moebius "
            "they never are, because the router would not learn"
        )
    counts = tuple(0 if is_dense(layer) else count for layer in layers)
    if 0 in counts and settings["intermediate_size"] != shared:
        raise settings.refuse(
            "intermediate_size",
            f"layers without experts must be as wide as the shared MLP of the others ({shared})",
        )
    experts: dict[str, Any] = {
        "num_experts": counts if 0 in counts else count,
        "router_top_k": top_k,
        "renormalize_gates": bool(renormalize),
        "router_score": "sigmoid" if architecture is GLM4_MOE else "softmax",
        "gate_scale": float(scale),
    }
    return experts, width, shared


def _whole(width: int, dim: int) -> int:
    """Return the width of ours that has room for a stock MLP."""
    ours = hidden_width(width / dim, dim)
    return ours if ours >= width else hidden_width((width + 63) / dim, dim)


def _preparation(shape: StockShape, scale: float) -> Callable[[str, Tensor], Tensor]:
    """Return the function that pads MLPs with zeros and multiplies the experts' outputs.

    Our widths are multiples of 64. Our stock experts have the factor of the gates in them.
    """

    def prepare(name: str, tensor: Tensor) -> Tensor:
        is_shared = ".shared_expert" in name
        is_expert = ".experts." in name
        if not re.search(r"\.(mlp|block_sparse_moe)\.", name) or tensor.dim() != 2:
            return tensor
        if name.endswith((".gate.weight", "shared_expert_gate.weight", "correction_bias")):
            return tensor
        width = shape.expert_width if is_expert else shape.model.base_width
        width = shape.shared_width if is_shared else width
        if not width:
            return tensor
        if name.endswith(("down_proj.weight", "w2.weight")):
            factor = scale if is_expert else 1.0
            return F.pad(tensor, [0, max(0, width - tensor.shape[1])]) * factor
        return F.pad(tensor, [0, 0, 0, max(0, width - tensor.shape[0])])

    return prepare
