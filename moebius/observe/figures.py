"""The figure that each alarm watches, and its last harmless value.

That value is the rule's threshold, except where a healthy layer with very few or very many experts
would be beyond it.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from moebius.config.observe import Rule
from moebius.moe.load import dead_share, variation
from moebius.observe.metrics import LayerMetrics, StepMetrics

OF_EXPERTS = ("dead_expert", "dominant_expert")
"""Rules that watch a figure of each expert."""
ABOUT_LOAD = ("cv", *OF_EXPERTS)
"""Rules about how evenly the experts are loaded."""
NEED_TWO_EXPERTS = (*ABOUT_LOAD, "router_gradient", "routing_entropy")
"""Rules that a layer with one expert cannot break. There is nothing to choose: the entropy is 0,
and a softmax over one logit is the constant 1, which has no gradient."""
LEAST_DOMINANCE = 4 / 3
"""A dominant expert has at least this multiple of its even share."""


class Place(NamedTuple):
    """What an alarm is about."""

    rule: str
    """Name of the rule."""
    layer: int
    """Number of the layer; -1 for the model as a whole."""


class Figure(NamedTuple):
    """A figure in one logged step: of each expert of a layer, of a layer, or of the model."""

    place: Place
    """What the figure is about."""
    values: np.ndarray
    """The figure of each expert, or just one. NaN if it was not measured."""
    threshold: float
    """The figure's last harmless value."""

    @property
    def is_of_experts(self) -> bool:
        """Whether each expert has a figure of its own."""
        return self.place.rule in OF_EXPERTS


def figures(
    name: str,
    rule: Rule,
    metrics: StepMetrics,
    loads: Mapping[int, list[int]],
    has_equal_experts: bool,
) -> Iterator[Figure]:
    """Yield a rule's figure for every place that has one: the model or a layer.

    loads: the tokens per expert of each layer whose load can be judged, by the layer's number.
    They are those of the logged step or, where it has too few tokens, of several steps.
    has_equal_experts: whether the experts of a layer are equal. A token's output is then the same
    whichever experts it has, so that gates which sum to 1 leave the router without a gradient.
    """
    if name == "loss_spike":
        yield _single(Place(name, -1), metrics.loss, rule.threshold)
        return
    for number, layer in metrics.routed_layers:
        num_experts = len(layer.tokens_per_expert)
        if name in NEED_TWO_EXPERTS and num_experts == 1:
            continue
        if name in ABOUT_LOAD:
            if number in loads:
                yield _of_load(Place(name, number), rule, layer, loads[number])
        elif name == "router_gradient":
            whole, own = metrics.grad_norm, layer.router_grad_norm
            share = own / whole if whole and own is not None else math.nan
            share = math.nan if has_equal_experts else share
            yield _single(Place(name, number), share, rule.threshold)
        else:
            threshold = rule.threshold
            if name == "unrouted_tokens":
                threshold = max(threshold, _most_unrouted(num_experts))
            value = _LAYER_FIGURES[name](layer)
            yield _single(Place(name, number), math.nan if value is None else value, threshold)


def _single(place: Place, value: float, threshold: float) -> Figure:
    return Figure(place, np.array([value], dtype=np.float64), threshold)


def _of_load(place: Place, rule: Rule, layer: LayerMetrics, counts: list[int]) -> Figure:
    """Return the figures of a rule about a layer's load, given the tokens of its experts."""
    if place.rule == "cv":
        is_of_step = counts == layer.tokens_per_expert
        return _single(place, layer.cv if is_of_step else variation(counts), rule.threshold)
    total = sum(counts)
    if place.rule == "dead_expert":
        per_assignment, threshold = 1.0, dead_share(len(counts), rule.threshold)
    else:
        # With k experts per token, an expert that takes every token has 1 / k of the load.
        per_assignment = 1.0 if layer.experts_per_token is None else layer.experts_per_token
        threshold = max(rule.threshold, LEAST_DOMINANCE * per_assignment / len(counts))
    return Figure(place, np.array(counts) / total * per_assignment, threshold)


def _most_unrouted(num_experts: int) -> float:
    """Return the largest share of unrouted tokens that a healthy layer may have by chance.

    An untrained sigmoid router takes each expert for half of the tokens, and so leaves a token
    without any of E experts with a probability of 1 / 2**E. The largest share is half as much
    again, so that with one expert it is 75%.
    """
    return 1.5 * 0.5**num_experts


_LAYER_FIGURES: dict[str, Callable[[LayerMetrics], float | None]] = {
    "routing_entropy": lambda layer: layer.routing_entropy,
    "dropped_tokens": lambda layer: layer.dropped_share,
    "unrouted_tokens": lambda layer: layer.unrouted_share,
    "vanishing_scores": lambda layer: layer.vanished_share,
    "router_logits": lambda layer: layer.not_finite_logits,
}
