"""What the experts of each layer are used for while an evaluation runs: which tokens they take."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from moebius.data.batches import PADDING, EvaluationBatch
from moebius.model.transformer import Transformer
from moebius.moe.router import Router, Routing
from moebius.moe.statistics import LayerStats, layer_stats
from moebius.observe.metrics import LayerMetrics, layer_metrics

TOP_TOKENS = 10
"""Number of tokens that are listed for each expert."""


@dataclass(frozen=True)
class TakenToken:
    """A token that an expert takes often."""

    id: int
    count: int
    """How many times the expert took it."""
    share: float
    """The share of the token's occurrences that the expert took."""


class LayerUse(NamedTuple):
    """How the experts of a layer are used."""

    layer: int
    """Number of the layer."""
    by_source: list[LayerMetrics]
    """The routing of each source's text."""
    top_tokens: list[list[TakenToken]]
    """The tokens that each expert took most often, over all sources."""


class ExpertUse:
    """Adds up the routing of all tokens that were read. `watching` makes one."""

    def __init__(self, model: Transformer, num_sources: int):
        layers: list[Any] = list(model.layers)
        self.routers: dict[int, Router] = {
            number: layer.moe.router
            for number, layer in enumerate(layers)
            if layer.moe.router is not None
        }
        """The router of each layer that has one, by the layer's number."""
        V, device = model.config.vocab_size, model.embedding.weight.device
        self._routing: dict[int, Routing] = {}
        """What the routers did with the current batch."""
        self._stats: dict[tuple[int, int], LayerStats] = {}
        """Sums by layer and source, in float64."""
        # An expert's weights are larger than its row. The last row takes the sentinel.
        self._counts = {
            number: torch.zeros(router.num_experts + 1, V, dtype=torch.int32, device=device)
            for number, router in self.routers.items()
        }
        self._occurrences_V = torch.zeros(V, dtype=torch.int32, device=device)
        self._num_sources = num_sources

    def note(self, number: int, routing: Routing) -> None:
        """Keep the routing of the current batch in a layer."""
        self._routing[number] = routing

    @torch.no_grad()
    def add(self, batch: EvaluationBatch, nats_BS: Tensor) -> None:
        """Add the batch that the model has just read. Padding does not count."""
        S = nats_BS.shape[1]
        window_BL = torch.from_numpy(batch.tokens).to(nats_BS.device)
        is_counted_T = (window_BL[:, 1 : S + 1] != PADDING).flatten()
        token_T = window_BL[:, :S].flatten()[is_counted_T]
        _count(self._occurrences_V, token_T)
        for number, routing in self._routing.items():
            kept = Routing(*(part[is_counted_T] for part in routing))
            stats = layer_stats(self.routers[number], kept, 1)
            wide = LayerStats(*(figure.detach().double() for figure in stats))
            place = number, batch.source
            known = self._stats.get(place)
            self._stats[place] = wide if known is None else known.added(wide)
            counts_EV = self._counts[number]
            key_TK = kept.expert_TK * counts_EV.shape[1] + token_T[:, None]
            _count(counts_EV.view(-1), key_TK.flatten())
        self._routing.clear()

    def layers(self) -> list[LayerUse]:
        """Return how each layer's experts were used."""
        return [
            LayerUse(
                number,
                [
                    layer_metrics(LayerStats(*(f.cpu() for f in stats)), None, None, None)
                    for stats in (self._stats[number, s] for s in range(self._num_sources))
                ],
                [self._top(counts_V) for counts_V in self._counts[number][:-1]],
            )
            for number in self.routers
        ]

    def _top(self, counts_V: Tensor) -> list[TakenToken]:
        top = counts_V.topk(min(TOP_TOKENS, len(counts_V)))
        occurrences = self._occurrences_V[top.indices].tolist()
        rows = zip(top.indices.tolist(), top.values.tolist(), occurrences, strict=True)
        return [TakenToken(id_, count, count / total) for id_, count, total in rows if count]


@contextmanager
def watching(model: Transformer, num_sources: int) -> Iterator[ExpertUse]:
    """Let an `ExpertUse` see what the model's routers do within this context."""
    use = ExpertUse(model, num_sources)

    def noting(number: int) -> Any:
        return lambda router, inputs, routing: use.note(number, routing)

    hooks = [
        router.register_forward_hook(noting(number)) for number, router in use.routers.items()
    ]
    try:
        yield use
    finally:
        for hook in hooks:
            hook.remove()


def _count(counts: Tensor, places: Tensor) -> None:
    """Add 1 at each of the places, as often as it occurs."""
    counts.scatter_add_(0, places, torch.ones_like(places, dtype=counts.dtype))
