"""What each component of a step costs at least: parameters, FLOPs and bytes from the configuration, and the time they imply.

FLOPs are those of moebius/cost.py. Bytes are the fewest that a step has to move: every input of a component read once, every
output written once, a weight once a micro-batch, intermediate values of one product not at all. A component's floor is the
longer of its FLOPs over the device's matrix-product rate and its bytes over its copy rate, both measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from moebius.config import MTP_OFFSETS, Config, ModelConfig
from moebius.cost import forward_flops_per_token, parameters
from moebius.memory import WIDE


@dataclass(frozen=True)
class Work:
    """Of one component in a whole step."""

    flops: float = 0.0
    bytes: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(self.flops + other.flops, self.bytes + other.bytes)

    def seconds(self, flops_per_second: float, bytes_per_second: float) -> float:
        """The floor."""
        return max(self.flops / flops_per_second, self.bytes / bytes_per_second)


@dataclass(frozen=True)
class Component:
    """Parameters, and the work of both passes; of the optimizer it is all `forward`."""

    parameters: int
    forward: Work
    backward: Work = Work()


def components(config: Config, item: int, experts_per_token: Sequence[float] | None = None) -> dict[str, Component]:
    """By name, in the order of the step. item: bytes of a number in a matrix product; experts_per_token: as measured, one
    per layer and the MTP layer's last; default: as many as the router may choose."""
    model, train = config.model, config.train
    tokens = train.batch_size * train.seq_len
    passes = train.accumulation_steps
    counts = parameters(model)
    flops = {name: each * tokens for name, each in forward_flops_per_token(model, train.seq_len, experts_per_token).items()}
    used = list(experts_per_token) if experts_per_token else _most(model)
    D, N, G, H, V = model.dim, model.num_heads, model.num_kv_heads, model.head_width, model.vocab_size
    layers = model.num_layers
    heads = N * H + 2 * G * H

    def gemm(name: str, weights: int, values: float) -> Component:
        """A product: its weights are cast once a pass, its gradient written in full precision."""
        cast = (WIDE + 2 * item if item < WIDE else WIDE) * weights * passes
        forward = Work(flops[name], cast + item * values)
        return Component(weights, forward, Work(2 * flops[name], (item + 2 * WIDE) * weights * passes + 2 * item * values))

    def moving(forward: float, backward: float, weights: int = 0) -> Component:
        return Component(weights, Work(bytes=forward), Work(bytes=backward))

    rows = [tokens * share for share in used[:layers]]
    matrices = model.matrices_per_mlp
    hidden = sum(row * width for row, width in zip(rows, model.expert_widths, strict=True))
    everything = sum(counts.values())
    halves = 2 * layers * tokens * D  # each adds its result to the stream, which is normed for the next, in one go
    found = {
        "embedding": moving(2 * WIDE * tokens * D, WIDE * (tokens + 2 * V) * D, counts["embedding"]),
        "norms": moving(halves * (2 * WIDE + 2 * item), halves * (3 * WIDE + 2 * item), counts["norms"]),
        "attention_projections": gemm("attention_projections", counts["attention"], tokens * layers * (2 * D + heads + N * H)),
        "rotary": moving(2 * item * tokens * layers * (N + G) * H, 2 * item * tokens * layers * (N + G) * H),
        "attention_core": gemm("attention_core", 0, tokens * layers * (heads + N * H)),
        "router": gemm("router", counts["router"], tokens * D * sum(count > 0 for count in model.experts_per_layer)),
        "dispatch": moving(2 * item * sum(rows) * D, 2 * item * sum(rows) * D),
        "expert_gemms": gemm("experts", counts["experts"], matrices * hidden + 2 * sum(rows) * D),
        "activation": moving(item * matrices * hidden, item * (2 * matrices - 1) * hidden),
        "combine": moving(item * (sum(rows) + tokens * layers) * D, item * (2 * sum(rows) + tokens * layers) * D),
        "base_mlp": gemm("base_mlp", counts["base_mlp"], tokens * layers * (2 * D + (matrices + 1) * model.base_width)),
        "mtp": gemm("mtp", counts["mtp"], len(MTP_OFFSETS) * tokens * (2 * D)),
        "lm_head": gemm("lm_head", counts["lm_head"] or counts["embedding"], tokens * D),
        "optimizer": Component(0, Work(bytes=optimizer_bytes(config) * everything)),
    }
    return {name: each for name, each in found.items() if (each.forward + each.backward) != Work()}


def optimizer_bytes(config: Config) -> float:
    """A parameter's: gradient read for its norm and for the update, weight and moments read and written."""
    moments = 1 if config.train.optimizer == "muon" else 2
    clipping = 3 if config.train.grad_clip else 1  # read, scaled
    return WIDE * (clipping + 1 + 2 + 2 * moments)


def _most(model: ModelConfig) -> list[float]:
    return [float(model.experts_per_token(count)) for count in model.experts_per_layer]
