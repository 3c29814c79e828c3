"""The whole model, top-down: a decoder-only transformer whose MLPs are mixtures of experts."""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moebius.config import MTP_OFFSETS, ModelConfig
from moebius.model.attention import Attention
from moebius.model.backends import Backends, choose_backends
from moebius.model.experts import Experts
from moebius.model.head import head_cross_entropy, part_of_loss
from moebius.model.init import initialise
from moebius.model.loss import Balancing, Loss, documents, shifted_targets, total_loss
from moebius.model.moe import MoE
from moebius.model.mtp import MultiTokenPrediction
from moebius.model.rope import Rotation, rotation
from moebius.model.router import Router
from moebius.model.statistics import LayerStats


class Output(NamedTuple):
    """logits_BSV of the next token, and one LayerStats per layer with experts."""

    logits_BSV: Tensor
    stats: tuple[LayerStats, ...]


class Transformer(nn.Module):
    """tokens_BS -> logits_BSV. Weights are float32; run it under torch.autocast for bfloat16 arithmetic."""

    def __init__(self, config: ModelConfig, backends: Backends | None = None):
        super().__init__()
        self.config = config
        self.backends = backends or choose_backends()
        self.loss_part = part_of_loss
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        shapes = zip(config.experts_per_layer, config.expert_widths, strict=True)
        self.layers = nn.ModuleList(Block(config, *shape, self.backends) for shape in shapes)
        self.norm = nn.RMSNorm(config.dim, config.norm_eps)
        self.mtp = MultiTokenPrediction(config, self.backends.run_experts) if config.use_mtp else None
        self.lm_head = nn.Linear(config.dim, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.lm_head.weight = self.embedding.weight
        initialise(self, config)

    def forward(self, tokens_BS: Tensor, document_BS: Tensor | None = None) -> Output:
        """Tokens see only earlier tokens and, with document_BS given, only their own document."""
        hidden_BSD, stats = self.hidden(tokens_BS, document_BS)
        return Output(self.lm_head(self.norm(hidden_BSD)), stats)

    def loss(self, tokens_BL: Tensor, end_of_text: int | None = None, balancing: Balancing | None = None) -> Loss:
        """The training loss of sequences of S = L - lookahead tokens followed by the `lookahead` tokens to predict.

        end_of_text: the separator with which each document begins, to keep documents apart; None does not. balancing: how
        strongly each layer is balanced and over what; by default as configured, over these sequences.
        """
        S = tokens_BL.shape[1] - lookahead(self.config)
        document_BL = None if end_of_text is None else documents(tokens_BL, end_of_text)
        hidden_BSD, stats = self.hidden(tokens_BL[:, :S], None if document_BL is None else document_BL[:, :S])
        next_token = self.head_loss(hidden_BSD, shifted_targets(tokens_BL, 1, S, document_BL))
        if self.mtp is None:
            return total_loss(next_token, None, stats, self.config, balancing)
        outputs, mtp_stats = self.mtp(hidden_BSD)
        losses = []
        for offset, (ahead_BSD, bias_V) in zip(MTP_OFFSETS, outputs, strict=True):
            losses.append(self.head_loss(ahead_BSD, shifted_targets(tokens_BL, offset, S, document_BL), bias_V))
        stats += (mtp_stats,) if mtp_stats is not None else ()
        return total_loss(next_token, torch.stack(losses).mean(), stats, self.config, balancing)

    def hidden(self, tokens_BS: Tensor, document_BS: Tensor | None = None) -> tuple[Tensor, tuple[LayerStats, ...]]:
        """The residual stream after the last block, before the final norm."""
        mask = self.backends.mask(document_BS)
        angles = rotation(tokens_BS.shape[1], self.config, tokens_BS.device)
        hidden_BSD = self.embed(tokens_BS)
        all_stats: list[LayerStats] = []
        for layer in self.layers:
            hidden_BSD, stats = layer(hidden_BSD, angles, mask)
            if stats is not None:
                all_stats.append(stats)
        return hidden_BSD, tuple(all_stats)

    def head_loss(self, hidden_BSD: Tensor, target_BS: Tensor, bias_V: Tensor | None = None) -> Tensor:
        """Mean cross-entropy of the LM head's logits, with a bias on them."""
        chunks = self.backends.loss_chunks
        return head_cross_entropy(self.norm(hidden_BSD), self.lm_head.weight, target_BS, bias_V, chunks, self.loss_part)

    def embed(self, tokens_BS: Tensor) -> Tensor:
        """Unit variance, unless the embedding is also the head: see moebius/model/init.py."""
        x_BSD = F.embedding(tokens_BS, self.embedding.weight)
        return x_BSD if self.config.tie_embeddings else x_BSD * math.sqrt(self.config.dim)


class Block(nn.Module):
    """Pre-norm attention and MoE, each added to the stream."""

    def __init__(self, config: ModelConfig, num_experts: int, hidden: int, backends: Backends):
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.dim, config.norm_eps)
        self.attention = Attention(config, backends.attend)
        self.moe_norm = nn.RMSNorm(config.dim, config.norm_eps)
        self.moe = MoE(config, num_experts, hidden, backends.run_experts)

    def forward(self, x_BSD: Tensor, rotation: Rotation, mask: Any) -> tuple[Tensor, LayerStats | None]:
        x_BSD = x_BSD + self.attention(self.attention_norm(x_BSD), rotation, mask)
        out_BSD, stats = self.moe(self.moe_norm(x_BSD))
        return x_BSD + out_BSD, stats


class RoutedLayer(NamedTuple):
    """The trained parts of a layer with experts."""

    router: Router
    experts: Experts


def routed_layers(model: Transformer) -> list[RoutedLayer]:
    """The layers with experts, the MTP layer last: those that `stats` has an entry for, in its order."""
    every: list[Any] = [layer.moe for layer in model.layers] + ([model.mtp.moe] if model.mtp is not None else [])
    return [RoutedLayer(moe.router, moe.experts) for moe in every if moe.router is not None]


def lookahead(config: ModelConfig) -> int:
    """Tokens that a sequence must carry beyond those the model reads."""
    return max(MTP_OFFSETS) if config.use_mtp else 1


def count_parameters(model: nn.Module) -> int:
    """Every parameter once, tied ones too."""
    return sum(parameter.numel() for parameter in model.parameters())


def seeded(seed: int, config: ModelConfig, backends: Backends | None = None) -> Transformer:
    """A model whose initial weights depend on the seed alone."""
    torch.manual_seed(seed)
    return Transformer(config, backends)
