"""A logged step as one typed value, which the loop hands to sinks, terminal and alarms."""

import math
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from moebius.config import MTP_OFFSETS
from moebius.moe.load import dead_experts, max_violation, variation
from moebius.moe.statistics import LayerStats

LARGEST = sys.float_info.max
"""The largest figure that a line may have."""


@dataclass(frozen=True, kw_only=True)
class LayerMetrics:
    """The routing of one layer in one step, over all micro-batches and processes.

    The defaults describe a layer without experts.
    """

    tokens_per_expert: list[int] = field(default_factory=list)
    """Tokens that each expert took. Empty for a layer without experts."""
    cv: float = 0.0
    """Coefficient of variation of `tokens_per_expert`; 0 is an even load."""
    max_violation: float = 0.0
    """How far the busiest expert is above the mean load, in units of the mean."""
    dead_experts: int = 0
    """Number of experts with less than 1% of the layer's load and a tenth of their even share."""
    experts_per_token: float | None = None
    """Mean number of experts that took a token. None in lines of versions without it."""
    routing_entropy: float | None = None
    """Mean entropy of a token's probabilities, divided by its largest possible value; 0 to 1."""
    mean_gate: float | None = None
    """Mean gate of the assignments that an expert took. None if there were none."""
    dropped_share: float = 0.0
    """Share of the assignments that full experts refused."""
    unrouted_share: float = 0.0
    """Share of the tokens that no expert took."""
    vanished_share: float = 0.0
    """Share of the tokens whose highest score is below 1e-7 (only possible for sigmoid scores)."""
    not_finite_logits: int = 0
    """Number of router logits that are infinite or NaN."""
    router_grad_norm: float | None = None
    """Norm of the router's gradient before clipping."""
    balance_loss: float | None = None
    """The layer's load-balancing loss, without its coefficient."""
    z_loss: float | None = None
    """The layer's router z-loss, without its coefficient."""


@dataclass(frozen=True, kw_only=True)
class SourceMetrics:
    """The held-out loss of one of several sources."""

    share: float
    """The source's share of the training sequences, and of the held-out loss of all sources."""
    loss: float
    """Nats per token."""
    bpb: float | None
    """Bits per byte of text. None if the tokenizer loses text."""
    tokens: int
    """Number of held-out tokens of the source that were predicted."""


@dataclass(frozen=True, kw_only=True)
class StepMetrics:
    """Everything that is logged about one step, over all micro-batches and processes."""

    step: int
    """Number of the step, from 1."""
    tokens: int
    """Tokens that the run has trained on so far."""
    loss: float
    """Next-token loss in nats per token."""
    lr: float
    """Learning rate of the step's update."""
    grad_norm: float
    """Norm of the whole gradient before clipping."""
    balance_loss: float
    """Mean of the layers' balance losses."""
    z_loss: float
    """Mean of the layers' router z-losses."""
    mtp_loss: float | None = None
    """Loss of multi-token prediction, the mean over its offsets. None without it."""
    mtp_losses: list[float | None] = field(default_factory=list)
    """Loss of each offset of multi-token prediction in nats per token. None for an offset without
    a target: all documents of the step were too short for it. Empty without multi-token
    prediction."""
    layers: list[LayerMetrics]
    """One value per layer. The MTP layer's, over its three passes, comes last."""
    tokens_per_second: float
    """Speed since the last logged step, not counting evaluations and checkpoints."""
    mfu: float
    """Model FLOPs per second, divided by the device's measured rate of matrix products."""
    memory_gb: float
    """Largest amount of memory used so far, in 10^9 bytes, without mapped files."""
    val_loss: float | None = None
    """Held-out loss in nats per token. None if the step was not evaluated."""
    val_bpb: float | None = None
    """Held-out loss in bits per byte of the text that was evaluated. None if the tokenizer loses
    text."""
    val_by_source: dict[str, SourceMetrics] = field(default_factory=dict)
    """The held-out loss of each source by its name. Empty for a single source."""

    def to_json(self) -> dict[str, Any]:
        """Return the step as a line of metrics.jsonl, without figures that the step does not have.

        Each figure of the layers is one list, with one value per layer. With many experts, the
        tokens of each are left out (see `has_many_experts`), and the layers' figures are rounded.
        """
        line: dict[str, Any] = {name: getattr(self, name) for name in _BEFORE_LAYERS}
        if self.mtp_loss is not None:
            line["mtp_loss"] = self.mtp_loss
        if self.mtp_losses:
            line |= dict(zip(_MTP_KEYS, self.mtp_losses, strict=True))
        is_short = self.has_many_experts
        for name, key in _LAYER_KEYS.items():
            column = [getattr(layer, name) for layer in self.layers]
            if not (is_short and name == COUNTS):
                line[key] = [_rounded(value) for value in column] if is_short else column
        line |= {name: getattr(self, name) for name in _AFTER_LAYERS}
        if self.val_loss is not None:
            line |= {"val_loss": self.val_loss, "val_bpb": self.val_bpb}
        if self.val_by_source:
            line["val_by_source"] = {
                name: asdict(source) for name, source in self.val_by_source.items()
            }
        return line

    @classmethod
    def from_json(
        cls, line: dict[str, Any], counts: list[list[int]] | None = None
    ) -> "StepMetrics":
        """Return the step that a line of metrics.jsonl describes; the inverse of `to_json`.

        counts: the tokens per expert of each layer, for a line that has none. A figure that is not
        finite is null in the line, and NaN here. Raises KeyError for a missing figure, unless
        earlier versions did not have it.
        """
        if counts is not None:
            line = {COUNTS: counts} | line
        columns = {
            name: line[key]
            for name, key in _LAYER_KEYS.items()
            if name not in _LATER or key in line
        }
        layers = [
            LayerMetrics(**{name: column[layer] for name, column in columns.items()})
            for layer in range(len(columns["tokens_per_expert"]))
        ]
        names = (*_BEFORE_LAYERS, *_AFTER_LAYERS)
        figures: dict[str, Any] = {
            name: math.nan if line[name] is None else line[name] for name in names
        }
        figures |= {name: line.get(name) for name in ("mtp_loss", "val_loss", "val_bpb")}
        if "val_loss" in line and line["val_loss"] is None:
            figures["val_loss"] = math.nan
        figures["mtp_losses"] = [line[key] for key in _MTP_KEYS if key in line]
        figures["val_by_source"] = {
            name: SourceMetrics(**source) for name, source in line.get("val_by_source", {}).items()
        }
        return cls(layers=layers, **figures)

    @property
    def has_many_experts(self) -> bool:
        """Whether the tokens of each expert are kept in a file of their own.

        They would take up most of a line: 26 of 33 kB with 24 layers of 256 experts.
        """
        return sum(len(layer.tokens_per_expert) for layer in self.layers) > MANY_EXPERTS

    @property
    def routed_layers(self) -> Iterator[tuple[int, LayerMetrics]]:
        """The layers that have experts, each with its number."""
        return ((n, layer) for n, layer in enumerate(self.layers) if layer.tokens_per_expert)


MANY_EXPERTS = 1_000
"""Number of experts in all layers above which `has_many_experts` is true."""
COUNTS = "tokens_per_expert"
DIGITS = 6
"""Significant digits of the layers' figures in lines of models with many experts."""
_BEFORE_LAYERS = ("step", "tokens", "loss", "lr", "grad_norm", "balance_loss", "z_loss")
_MTP_KEYS = tuple(f"mtp_loss_{offset}" for offset in MTP_OFFSETS)
_AFTER_LAYERS = ("tokens_per_second", "mfu", "memory_gb")
_LAYER_KEYS = {figure.name: figure.name for figure in fields(LayerMetrics)}
# Without the prefix, these are the names of the means over all layers.
_LAYER_KEYS |= {"balance_loss": "layer_balance_loss", "z_loss": "layer_z_loss"}
_LATER = ("experts_per_token", "vanished_share")
"""Figures that lines of earlier versions do not have."""
_ALWAYS = ("step", "tokens", "loss", "lr", "grad_norm", "tokens_per_second")
"""Figures that the lines of all versions have."""
_NUMBERS = (*_BEFORE_LAYERS, "mtp_loss", *_MTP_KEYS, *_AFTER_LAYERS, "val_loss", "val_bpb")


def is_metrics(line: dict[str, Any]) -> bool:
    """Return whether an object is a line of metrics.jsonl, of this version or another one.

    What every version writes must be there, and every figure that is there must be of its kind.
    Figures that this version does not know may be anything.
    """
    loads, by_source = line.get(COUNTS, []), line.get("val_by_source", {})
    if not isinstance(loads, list) or not isinstance(by_source, dict):
        return False
    numbers = [line[name] for name in _NUMBERS if name in line]
    columns = [line[key] for key in _LAYER_KEYS.values() if key in line and key != COUNTS]
    lists = [*loads, *columns, *(_values(source) for source in by_source.values())]
    return (
        all(name in line for name in _ALWAYS)
        and all(isinstance(values, list) for values in lists)
        and all(map(_is_number, (*numbers, *(value for values in lists for value in values))))
        and len({len(column) for column in ([loads] if COUNTS in line else []) + columns}) < 2
    )


def _rounded(value: Any) -> Any:
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def layer_metrics(
    stats: LayerStats,
    router_grad_norm: float | None,
    balance_loss: float | None,
    z_loss: float | None,
) -> LayerMetrics:
    """Return a layer's figures. `stats`, its sums over a step's tokens, must be on the CPU."""
    counts = [round(count) for count in stats.tokens_per_expert_E.tolist()]
    tokens, chosen = stats.tokens.item(), stats.chosen_PE.sum().item()
    return LayerMetrics(
        tokens_per_expert=counts,
        cv=variation(counts),
        max_violation=max_violation(counts),
        dead_experts=dead_experts(counts),
        experts_per_token=sum(counts) / tokens,
        routing_entropy=stats.entropy.item() / tokens,
        mean_gate=stats.gate.item() / sum(counts) if sum(counts) else None,
        dropped_share=stats.dropped.item() / chosen if chosen else 0.0,
        unrouted_share=stats.unrouted.item() / tokens,
        vanished_share=stats.vanished.item() / tokens,
        not_finite_logits=round(stats.not_finite.item()),
        router_grad_norm=router_grad_norm,
        balance_loss=balance_loss,
        z_loss=z_loss,
    )


def _is_number(value: Any) -> bool:
    """Return whether a value in a line is a number, or null in place of one that is not finite.

    Python reads NaN, Infinity and integers of any size, too, which no run writes.
    """
    return value is None or (type(value) in (int, float) and abs(value) <= LARGEST)


def _values(source: Any) -> Any:
    """Return the figures of a source in `val_by_source` as a list."""
    return list(source.values()) if isinstance(source, dict) else None
