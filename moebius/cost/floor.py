"""The least that each component of a training step can cost: FLOPs, bytes and time.

FLOPs are those of moebius/cost/counts.py. Bytes are the fewest that a step has to move: every
input of a component is read once, every output is written once, and a weight is read once in each
forward pass; the intermediate values of one matrix product move no bytes at all. A component's
floor is the longer of two times: that of its FLOPs at the device's measured rate of matrix
products, and that of its bytes at the measured rate of copies.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from moebius.config import MTP_OFFSETS, Config
from moebius.config.optimizers import OPTIMIZERS
from moebius.cost.counts import forward_flops_per_token, most_experts_per_token, parameters
from moebius.cost.sizes import FLOAT32


@dataclass(frozen=True)
class Work:
    """What a component computes and moves in a whole step."""

    flops: float = 0.0
    bytes: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(self.flops + other.flops, self.bytes + other.bytes)

    def seconds(self, flops_per_second: float, bytes_per_second: float) -> float:
        """Return the shortest time in which a device with these rates can do the work."""
        return max(self.flops / flops_per_second, self.bytes / bytes_per_second)


@dataclass(frozen=True)
class Component:
    """The parameters of one component and its work in a step."""

    parameters: int
    forward: Work
    """Work of the forward pass. For the optimizer, this is all of its work."""
    backward: Work = Work()


def components(
    config: Config, item: int, experts_per_token: Sequence[float] | None = None
) -> dict[str, Component]:
    """Return the components of a step by name, in the order in which a step runs them.

    item is the size in bytes of a number in a matrix product. experts_per_token is the mean number
    of experts that a token has in each layer and, last, in the MTP layer; by default as many as
    the router may choose. Components without any work are left out.
    """
    step = _Step(config, item, experts_per_token)
    by_name = _stream(step) | _attention(step) | _experts(step) | _everything_else(step)
    return {
        name: component
        for name, component in by_name.items()
        if component.forward + component.backward != Work()
    }


def optimizer_bytes(config: Config) -> float:
    """Return the bytes that an optimizer step moves per parameter.

    The gradient is read for its norm, scaled if it is clipped, and read for the update; the weight
    and the moments are read and written.
    """
    # Nearly all parameters are in hidden matrices, so their number of moments stands for all.
    moments = OPTIMIZERS[config.train.optimizer].hidden_moments
    clipping = 3 if config.train.grad_clip else 1  # scaling reads and writes the gradient
    return FLOAT32 * (clipping + 1 + 2 + 2 * moments)


@dataclass(frozen=True)
class _Step:
    """One step, with the sizes that several components depend on."""

    config: Config
    item: int
    """Bytes of a number in a matrix product."""
    experts_per_token: Sequence[float] | None
    """As in `components`."""

    @cached_property
    def tokens(self) -> int:
        return self.config.train.batch_size * self.config.train.seq_len

    @cached_property
    def parameters(self) -> dict[str, int]:
        return parameters(self.config.model)

    @cached_property
    def flops(self) -> dict[str, float]:
        """FLOPs of the step's forward passes by component."""
        per_token = forward_flops_per_token(
            self.config.model, self.config.train.seq_len, self.experts_per_token
        )
        return {name: flops * self.tokens for name, flops in per_token.items()}

    @cached_property
    def rows(self) -> list[float]:
        """Number of rows that the experts of each layer compute."""
        model = self.config.model
        per_token = self.experts_per_token or most_experts_per_token(model)
        return [self.tokens * count for count in per_token[: model.num_layers]]

    @cached_property
    def hidden_numbers(self) -> float:
        """Number of hidden activations of all experts: rows times widths."""
        widths = self.config.model.expert_widths
        return sum(row * width for row, width in zip(self.rows, widths, strict=True))

    def products(self, name: str, weights: int, numbers: float) -> Component:
        """Return a component of matrix products, whose FLOPs are counted under `name`.

        Weights are cast once in each forward pass and their gradient is float32. `numbers` is how
        many numbers the products read and write in addition to the weights.
        """
        item, passes = self.item, self.config.train.accumulation_steps
        cast = (FLOAT32 + 2 * item if item < FLOAT32 else FLOAT32) * weights * passes
        forward = Work(self.flops[name], cast + item * numbers)
        backward_bytes = (item + 2 * FLOAT32) * weights * passes + 2 * item * numbers
        return Component(weights, forward, Work(2 * self.flops[name], backward_bytes))


def _moving(forward: float, backward: float, weights: int = 0) -> Component:
    """Return a component without FLOPs that moves these numbers of bytes."""
    return Component(weights, Work(bytes=forward), Work(bytes=backward))


def _stream(step: _Step) -> dict[str, Component]:
    """Return the components of the residual stream."""
    model, tokens, item = step.config.model, step.tokens, step.item
    D, V = model.dim, model.vocab_size
    # Both halves of a block add their result to the stream and normalize it in one pass over it.
    numbers = 2 * model.num_layers * tokens * D
    return {
        "embedding": _moving(
            2 * FLOAT32 * tokens * D,
            FLOAT32 * (tokens + 2 * V) * D,
            step.parameters["embedding"],
        ),
        "norms": _moving(
            numbers * (2 * FLOAT32 + 2 * item),
            numbers * (3 * FLOAT32 + 2 * item),
            step.parameters["norms"],
        ),
    }


def _attention(step: _Step) -> dict[str, Component]:
    model, item = step.config.model, step.item
    D, N, G, H = model.dim, model.num_heads, model.num_kv_heads, model.head_width
    rows = step.tokens * model.num_layers
    query_key_value = N * H + 2 * G * H
    rotated = 2 * item * rows * (N + G) * H
    return {
        "attention_projections": step.products(
            "attention_projections",
            step.parameters["attention"],
            rows * (2 * D + query_key_value + N * H),
        ),
        "rotary": _moving(rotated, rotated),
        "attention_core": step.products("attention_core", 0, rows * (query_key_value + N * H)),
    }


def _experts(step: _Step) -> dict[str, Component]:
    model, tokens, item = step.config.model, step.tokens, step.item
    D, matrices, rows = model.dim, model.matrices_per_mlp, sum(step.rows)
    layers_with_experts = sum(count > 0 for count in model.experts_per_layer)
    results = tokens * model.num_layers
    return {
        "router": step.products(
            "router", step.parameters["router"], tokens * D * layers_with_experts
        ),
        "dispatch": _moving(2 * item * rows * D, 2 * item * rows * D),
        "expert_gemms": step.products(
            "experts",
            step.parameters["experts"],
            matrices * step.hidden_numbers + 2 * rows * D,
        ),
        "activation": _moving(
            item * matrices * step.hidden_numbers,
            item * (2 * matrices - 1) * step.hidden_numbers,
        ),
        "combine": _moving(item * (rows + results) * D, item * (2 * rows + results) * D),
    }


def _everything_else(step: _Step) -> dict[str, Component]:
    model, tokens, counts = step.config.model, step.tokens, step.parameters
    D = model.dim
    of_base_mlp = 2 * D + (model.matrices_per_mlp + 1) * model.base_width
    optimizer = optimizer_bytes(step.config) * sum(counts.values())
    return {
        "base_mlp": step.products(
            "base_mlp", counts["base_mlp"], tokens * model.num_layers * of_base_mlp
        ),
        "mtp": step.products("mtp", counts["mtp"], len(MTP_OFFSETS) * tokens * (2 * D)),
        "lm_head": step.products("lm_head", counts["lm_head"] or counts["embedding"], tokens * D),
        "optimizer": Component(0, Work(bytes=optimizer)),
    }
