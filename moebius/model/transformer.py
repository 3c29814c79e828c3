"""The whole model, top-down: a decoder-only transformer whose MLPs are mixtures of experts."""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moebius.config import ModelConfig
from moebius.hardware.backends import Backends, choose_backends
from moebius.model.attention import Attention, AttentionFunction, attention_backend
from moebius.model.cache import LayerCache
from moebius.model.head import head_cross_entropy, head_token_losses, part_of_loss
from moebius.model.init import initialize
from moebius.model.loss import (
    IGNORED,
    Divisors,
    Loss,
    all_targets,
    documents,
    offsets,
    total_loss,
)
from moebius.model.mtp import MultiTokenPrediction
from moebius.model.rope import Rotation, rotation
from moebius.moe.backends import expert_backend
from moebius.moe.balance import Balancing
from moebius.moe.experts import Experts, ExpertsFunction
from moebius.moe.layer import MoE
from moebius.moe.router import Router
from moebius.moe.statistics import LayerStats


class Output(NamedTuple):
    """The result of a forward pass."""

    logits_BSV: Tensor
    """Logits of the next token."""
    stats: tuple[LayerStats, ...]
    """Routing statistics of each layer with experts."""


class Transformer(nn.Module):
    """The language model: tokens_BS -> logits_BSV.

    Weights are float32. Run the model under torch.autocast for bfloat16 arithmetic.
    """

    def __init__(self, config: ModelConfig, backends: Backends | None = None):
        """Build and initialize a model, by default with the backends for a CPU."""
        super().__init__()
        self.config = config
        self.backends = backends or choose_backends()
        self.loss_part = part_of_loss
        run_experts = expert_backend(self.backends.experts)
        attend, self.attention_mask = attention_backend(self.backends.attention)
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        shapes = zip(config.experts_per_layer, config.expert_widths, strict=True)
        self.layers = nn.ModuleList(Block(config, *shape, attend, run_experts) for shape in shapes)
        self.norm = nn.RMSNorm(config.dim, config.norm_eps)
        self.mtp = MultiTokenPrediction(config, run_experts) if config.use_mtp else None
        self.lm_head = nn.Linear(config.dim, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.lm_head.weight = self.embedding.weight
        initialize(self, config)

    def forward(self, tokens_BS: Tensor, document_BS: Tensor | None = None) -> Output:
        """Return the logits of the next token at every position, and the routing statistics.

        A token sees itself and earlier tokens. With document_BS, the number of each token's
        document, it sees only those of its own document.
        """
        hidden_BSD, stats = self.hidden(tokens_BS, document_BS)
        return Output(self.lm_head(self.norm(hidden_BSD)), stats)

    def loss(
        self,
        tokens_BL: Tensor,
        end_of_text: int | None = None,
        balancing: Balancing | None = None,
        divisors: Divisors | None = None,
    ) -> Loss:
        """Return the training loss of sequences of S tokens.

        tokens_BL: the S tokens that the model reads, and then the `lookahead` tokens that only
        serve as targets. Tokens of IGNORED are padding: they are read as the id 0, and are no
        targets. Padding belongs at the end, where no other token sees it.
        end_of_text: the token that every document begins with. Attention and loss then stay inside
        each document. None lets them cross documents.
        balancing: how strongly each layer is balanced, and over which tokens. None means as
        configured, over these sequences.
        divisors: the counts of the step that these sequences are a part of; the result is then
        what they add to the step's loss. None means that they are the whole step.
        """
        config = self.config
        document_BL = None if end_of_text is None else documents(tokens_BL, end_of_text)
        targets = all_targets(tokens_BL, config, document_BL)
        divisors = divisors or Divisors.of(targets)
        times = divisors.sequences.double() / len(tokens_BL)
        hidden_BSD, stats = self._read(tokens_BL, document_BL, targets[0].shape[1])
        next_token = self.head_loss(hidden_BSD, targets[0], None, divisors.targets_O[0])
        if self.mtp is None:
            return total_loss(next_token, None, stats, config, balancing, times)
        outputs, mtp_stats = self.mtp(hidden_BSD)
        parts = zip(outputs, targets[1:], divisors.targets_O[1:], strict=True)
        mtp_O = torch.stack(
            [
                self.head_loss(ahead_BSD, target_BS, bias_V, num_targets)
                for (ahead_BSD, bias_V), target_BS, num_targets in parts
            ]
        )
        stats += (mtp_stats,) if mtp_stats is not None else ()
        return total_loss(next_token, mtp_O, stats, config, balancing, times)

    @torch.no_grad()
    def token_losses(self, tokens_BL: Tensor, end_of_text: int | None = None) -> Tensor:
        """Return nats_BS, the loss of the next token at each position.

        The arguments are those of `loss`, whose `next_token` is the mean of these losses. Where
        there is no target, the loss is 0.
        """
        document_BL = None if end_of_text is None else documents(tokens_BL, end_of_text)
        target_BS = all_targets(tokens_BL, self.config, document_BL)[0]
        hidden_BSD, _ = self._read(tokens_BL, document_BL, target_BS.shape[1])
        return head_token_losses(self.norm(hidden_BSD), self.lm_head.weight, target_BS)

    def _read(
        self, tokens_BL: Tensor, document_BL: Tensor | None, seq_len: int
    ) -> tuple[Tensor, tuple[LayerStats, ...]]:
        """Return hidden_BSD and the statistics of the first seq_len tokens of each sequence."""
        tokens_BS = tokens_BL[:, :seq_len]
        document_BS = None if document_BL is None else document_BL[:, :seq_len]
        return self.hidden(tokens_BS.masked_fill(tokens_BS == IGNORED, 0), document_BS)

    def hidden(
        self, tokens_BS: Tensor, document_BS: Tensor | None = None
    ) -> tuple[Tensor, tuple[LayerStats, ...]]:
        """Return hidden_BSD, the residual stream before the final norm, and the statistics."""
        mask = self.attention_mask(document_BS)
        hidden_BSD = self.embed(tokens_BS)
        angles = rotation(tokens_BS.shape[1], self.config, tokens_BS.device, hidden_BSD.dtype)
        all_stats: list[LayerStats] = []
        for layer in self.layers:
            hidden_BSD, stats = layer(hidden_BSD, angles, mask)
            if stats is not None:
                all_stats.append(stats)
        return hidden_BSD, tuple(all_stats)

    def head_loss(
        self,
        hidden_BSD: Tensor,
        target_BS: Tensor,
        bias_V: Tensor | None = None,
        num_targets: Tensor | None = None,
    ) -> Tensor:
        """Return the cross-entropy of the LM head's logits, with bias_V added to them.

        It is the sum over the targets divided by num_targets, by default by their number.
        """
        return head_cross_entropy(
            self.norm(hidden_BSD),
            self.lm_head.weight,
            target_BS,
            bias_V,
            self.backends.loss_chunks,
            self.loss_part,
            num_targets,
        )

    def embed(self, tokens_BS: Tensor) -> Tensor:
        """Return x_BSD. It starts with unit variance unless the embedding is also the LM head.

        moebius/model/init.py gives the reasons.
        """
        x_BSD = F.embedding(tokens_BS, self.embedding.weight)
        return x_BSD if self.config.tie_embeddings else x_BSD * math.sqrt(self.config.dim)


class Block(nn.Module):
    """Attention and then an MoE layer. Each reads the normalized stream and adds its result."""

    def __init__(
        self,
        config: ModelConfig,
        num_experts: int,
        hidden: int,
        attend: AttentionFunction,
        run_experts: ExpertsFunction,
    ):
        """Build one layer of `num_experts` experts of width `hidden`, around the backends."""
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.dim, config.norm_eps)
        self.attention = Attention(config, attend)
        self.moe_norm = nn.RMSNorm(config.dim, config.norm_eps)
        self.moe = MoE(config, num_experts, hidden, run_experts)

    def forward(
        self, x_BSD: Tensor, rotation: Rotation, mask: Any, cache: LayerCache | None = None
    ) -> tuple[Tensor, LayerStats | None]:
        """Return the residual stream after the block, and the statistics of its routing.

        With a cache, which is for writing text, there are no statistics.
        """
        x_BSD = x_BSD + self.attention(self.attention_norm(x_BSD), rotation, mask, cache)
        out_BSD, stats = self.moe(self.moe_norm(x_BSD), with_stats=cache is None)
        return x_BSD + out_BSD, stats


class RoutedLayer(NamedTuple):
    """The parts of a layer that route tokens."""

    router: Router
    """The layer's router."""
    experts: Experts
    """The layer's experts."""


def routed_layers(model: Transformer) -> list[RoutedLayer]:
    """Return the layers with experts, in the order of the statistics; the MTP layer is last."""
    moes: list[Any] = [layer.moe for layer in model.layers]
    if model.mtp is not None:
        moes.append(model.mtp.moe)
    return [RoutedLayer(moe.router, moe.experts) for moe in moes if moe.router is not None]


def lookahead(config: ModelConfig) -> int:
    """Return how many tokens the loss needs beyond those that the model reads."""
    return max(offsets(config))


def seeded(seed: int, config: ModelConfig, backends: Backends | None = None) -> Transformer:
    """Return a new model whose initial weights depend only on the seed."""
    torch.manual_seed(seed)
    return Transformer(config, backends)
