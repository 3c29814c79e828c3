"""Which stock architecture of the `transformers` library can hold a model, and if none, why.

An architecture holds a model if weights exist with which it computes the same function, without
custom code. Nothing is approximated: a model that no architecture holds exactly is refused, with
the reason. moebius/infer/ converts the weights.
"""

from typing import Literal, NamedTuple

from moebius.config import ModelConfig, ObserveConfig
from moebius.config.routers import ROUTERS

TARGETS = ("hf",)
"""Names of the formats that a model can be exported to."""

DTYPES = ("float32", "bfloat16")
"""Names of the dtypes that weights can be exported in, as torch has them."""

Rotary = Literal["half", "partial", "interleaved"]


class Architecture(NamedTuple):
    """What distinguishes one stock architecture from the others."""

    name: str
    """Name of the class that loads it."""
    model_type: str
    """Its `model_type` in config.json."""
    rotary: Rotary
    """Which dimensions of a head it rotates. half: dimension i with i + H / 2, over the whole
    head. partial: the same within the first part of the head. interleaved: dimension 2 i with
    2 i + 1, over the whole head."""
    has_experts: bool = True
    has_gate: bool = True
    """Its MLPs have a gate matrix."""
    has_qk_norm: bool = False
    dense_layers: Literal["any", "prefix", "range"] = "any"
    """Where it may have dense layers: anywhere, before all others, or before and after them."""


LLAMA = Architecture("LlamaForCausalLM", "llama", "half", has_experts=False)
MISTRAL = Architecture("MistralForCausalLM", "mistral", "half", has_experts=False)
QWEN3 = Architecture("Qwen3ForCausalLM", "qwen3", "half", has_experts=False, has_qk_norm=True)
ARCEE = Architecture("ArceeForCausalLM", "arcee", "half", has_experts=False, has_gate=False)
APERTUS = Architecture(
    "ApertusForCausalLM", "apertus", "half", has_experts=False, has_gate=False, has_qk_norm=True
)
MIXTRAL = Architecture("MixtralForCausalLM", "mixtral", "half")
QWEN2_MOE = Architecture("Qwen2MoeForCausalLM", "qwen2_moe", "half")
QWEN3_MOE = Architecture("Qwen3MoeForCausalLM", "qwen3_moe", "half", has_qk_norm=True)
QWEN3_NEXT = Architecture("Qwen3NextForCausalLM", "qwen3_next", "partial", has_qk_norm=True)
ERNIE = Architecture(
    "Ernie4_5_MoeForCausalLM", "ernie4_5_moe", "interleaved", dense_layers="range"
)
GLM4_MOE = Architecture(
    "Glm4MoeForCausalLM", "glm4_moe", "partial", has_qk_norm=True, dense_layers="prefix"
)
"""Its norms of queries and keys can be switched off."""

ARCHITECTURES = {
    architecture.model_type: architecture
    for architecture in (
        LLAMA,
        MISTRAL,
        QWEN3,
        ARCEE,
        APERTUS,
        MIXTRAL,
        QWEN2_MOE,
        QWEN3_MOE,
        QWEN3_NEXT,
        ERNIE,
        GLM4_MOE,
    )
}
"""All of them by their `model_type`."""


class Holder(NamedTuple):
    """The answer to the question which architecture holds a model."""

    architecture: Architecture | None
    """None if there is no such architecture."""
    reason: str
    """Why there is none; empty if there is one."""


def holder(model: ModelConfig, has_choice_bias: bool = False) -> Holder:
    """Return the architecture that holds the model exactly, without its MTP layer.

    has_choice_bias: whether a router adds a bias to its scores when it chooses experts. The model
    may have one because of `router_bias_rate`, or because an alarm has nudged it.
    """
    if not any(model.experts_per_layer):
        return _dense(model)
    if reason := _inexact_experts(model) or _inexact_router(model, has_choice_bias):
        return Holder(None, reason)
    if model.has_sigmoid_scores:
        return Holder(GLM4_MOE, "")
    if has_choice_bias:
        return Holder(ERNIE, "")
    if not model.qk_norm:
        return Holder(QWEN2_MOE, "")
    return Holder(QWEN3_NEXT if model.base_width else QWEN3_MOE, "")


def export_line(model: ModelConfig, observe: ObserveConfig) -> str:
    """Return what a model of this configuration can be exported to, in words."""
    found = holder(model, bool(model.router_bias_rate))
    if found.architecture is None:
        return f"to no stock architecture: {found.reason}"
    remarks = []
    if model.use_mtp:
        remarks.append("with --drop mtp")
    if not model.router_bias_rate and _may_nudge(model, observe):
        nudged = holder(model, has_choice_bias=True)
        name = nudged.architecture.name if nudged.architecture else "nothing"
        if nudged != found:
            remarks.append(f"to {name} once an alarm has nudged a bias")
    return f"hf: {', '.join([found.architecture.name, *remarks])}"


def _dense(model: ModelConfig) -> Holder:
    if model.qk_norm:
        return Holder(QWEN3 if model.activation == "swiglu" else APERTUS, "")
    divides = model.dim % model.num_heads == 0
    if model.activation == "swiglu":
        return Holder(LLAMA if divides else MISTRAL, "")
    if divides:
        return Holder(ARCEE, "")
    return Holder(
        None,
        f"dim {model.dim} is no multiple of num_heads {model.num_heads}, which the only dense "
        f"architecture with {model.activation} and without QK norm requires",
    )


def _inexact_experts(model: ModelConfig) -> str:
    """Return why no architecture has such experts, or an empty text."""
    if model.activation == "gelu":
        return "experts with activation gelu; all stock experts have a gate matrix"
    if model.residual_mix == "learned" and model.base_width:
        return "residual_mix learned: no stock architecture weighs base MLP and experts by token"
    return ""


def _inexact_router(model: ModelConfig, has_choice_bias: bool) -> str:
    """Return why no architecture has such a router, or an empty text."""
    sparse = [count for count in model.experts_per_layer if count]
    if ROUTERS[model.router_type].chooses_by_threshold:
        if model.router_threshold > 0:
            return (
                f"router_type {model.router_type} with router_threshold "
                f"{model.router_threshold:g}: stock routers choose a fixed number of experts"
            )
        if has_choice_bias:
            return f"router_type {model.router_type} with a choice bias: it acts as a threshold"
    if ROUTERS[model.router_type].has_capacity and drops_tokens(model):
        return (
            f"router_type {model.router_type} drops tokens in evaluation; stock routers never do "
            f"(eval_capacity_factor {max(sparse)} drops none)"
        )
    if model.has_sigmoid_scores:
        return ""
    if has_choice_bias and model.qk_norm:
        return (
            "softmax scores with a choice bias and qk_norm: stock architectures have one of them"
        )
    if model.router_top_k > 1 and len(set(sparse)) > 1:
        return (
            f"softmax scores with top-{model.router_top_k} of {min(sparse)} to {max(sparse)} "
            "experts: stock architectures have as many in every layer"
        )
    if unequal := [count for count in sparse if max(sparse) % count]:
        return (
            f"softmax scores of {unequal[0]} and {max(sparse)} experts: the smaller number does "
            "not divide the larger, so that its experts cannot be repeated"
        )
    return ""


def drops_tokens(model: ModelConfig) -> bool:
    """Return whether an expert with a capacity may refuse a token outside of training."""
    factor = model.eval_capacity_factor or model.capacity_factor
    return factor < max(model.experts_per_layer)


def _may_nudge(model: ModelConfig, observe: ObserveConfig) -> bool:
    rules = observe.rules().values()
    return any(model.experts_per_layer) and any(rule.action == "nudge_bias" for rule in rules)
