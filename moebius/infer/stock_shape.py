"""The sizes that a model has in a stock architecture, which has the same ones in every layer."""

from dataclasses import dataclass
from itertools import takewhile

from moebius.config import ModelConfig
from moebius.config.routers import ROUTERS
from moebius.cost.exports import GLM4_MOE, QWEN2_MOE, Architecture

FEWEST_OF_GLM = 2
"""Its router adds up the two best scores of each group of experts."""

NO_MLP = 64
"""Width of the MLP of zeros that Qwen2Moe gets beside the experts if there is no base MLP.
transformers could leave it out, but vLLM then fails on its tensors, which have no entries."""


@dataclass(frozen=True)
class StockShape:
    """A model and the stock architecture that holds it.

    Narrower experts are padded with zeros. Where a layer has fewer experts than others, a softmax
    router has each of them several times, and a router of independent scores has experts that are
    never chosen.
    """

    model: ModelConfig
    architecture: Architecture

    @property
    def num_experts(self) -> int:
        """Number of experts of every stock layer with experts; 0 in a dense architecture."""
        most = max(self.model.experts_per_layer)
        return max(most, FEWEST_OF_GLM) if self.architecture is GLM4_MOE else most

    @property
    def top_k(self) -> int:
        """Number of experts per token."""
        if ROUTERS[self.model.router_type].chooses_by_threshold:
            return self.num_experts  # the threshold is 0, so that all are active
        return self.model.router_top_k

    @property
    def is_renormalized(self) -> bool:
        """Whether the gates of a token are divided by their sum."""
        is_topk = self.model.router_type == "softmax_topk"
        return is_topk and self.model.renormalize_gates and self.model.router_top_k > 1

    @property
    def expert_width(self) -> int:
        """Hidden width of every stock expert."""
        shapes = zip(self.model.experts_per_layer, self.model.expert_widths, strict=True)
        return max((width for count, width in shapes if count), default=0)

    @property
    def num_shared(self) -> int:
        """Number of experts that are together as wide as the base MLP, or a little wider."""
        return -(-self.model.base_width // self.expert_width) if self.expert_width else 0

    @property
    def shared_width(self) -> int:
        """Hidden width of the stock MLP that every token passes through beside the experts."""
        if self.architecture is QWEN2_MOE:
            return self.model.base_width or NO_MLP
        if self.architecture.dense_layers == "any":
            return self.model.base_width
        return self.num_shared * self.expert_width

    @property
    def dense_layers(self) -> tuple[int, ...]:
        """The layers that are stored without experts.

        Layers without experts at a place where the architecture has none such are stored with
        experts that add nothing.
        """
        counts = self.model.experts_per_layer
        dense = tuple(layer for layer, count in enumerate(counts) if not count)
        if self.architecture.dense_layers == "any":
            return dense
        before = tuple(takewhile(lambda layer: not counts[layer], range(len(counts))))
        if self.architecture.dense_layers == "prefix" or len(before) == len(counts):
            return before
        after = tuple(takewhile(lambda layer: not counts[layer], reversed(range(len(counts)))))
        return before + after[::-1]

    def copies(self, layer: int) -> int:
        """Return how many times a stock layer has each of our experts."""
        count = self.model.experts_per_layer[layer]
        if self.model.has_sigmoid_scores or not count:
            return 1
        return self.num_experts // count

    def gate_factor(self, layer: int) -> float:
        """Return the factor on the outputs of a layer's experts that stock gates do not have.

        Copies of an expert share its probability.
        """
        count = self.model.experts_per_layer[layer]
        return self.model.gate_factor(count) * self.copies(layer)
