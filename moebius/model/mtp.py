"""Multi-token prediction: the hidden state of token t also predicts the tokens t+2, t+3 and t+4.

This is Gloeckle et al. 2024 (arXiv 2404.19737) with one shared MoE layer, which is applied once
per offset. Every pass works on the result of the previous pass, as DeepSeek-V3 chains its modules
(arXiv 2412.19437, section 2.2). If every pass had the same input, the shared layer could not tell
the offsets apart.
"""

import torch
from torch import Tensor, nn

from moebius.config import MTP_OFFSETS, ModelConfig
from moebius.moe.experts import ExpertsFunction
from moebius.moe.layer import MoE
from moebius.moe.statistics import LayerStats, summed


class MultiTokenPrediction(nn.Module):
    """The shared MoE layer, its norm, and a bias on the LM head's logits for each offset."""

    def __init__(self, config: ModelConfig, run_experts: ExpertsFunction):
        """Build an uninitialized layer with the shape of the last block's MoE layer."""
        super().__init__()
        self.norm = nn.RMSNorm(config.dim, config.norm_eps)
        self.moe = MoE(config, config.experts_per_layer[-1], config.expert_widths[-1], run_experts)
        self.bias_OV = nn.Parameter(torch.empty(len(MTP_OFFSETS), config.vocab_size))

    def forward(
        self, hidden_BSD: Tensor, with_stats: bool = True
    ) -> tuple[list[tuple[Tensor, Tensor]], LayerStats | None]:
        """Return (hidden_BSD, bias_V) for each offset, and the statistics of all passes together.

        The statistics are None if the layer has no experts, or without `with_stats`.
        """
        outputs: list[tuple[Tensor, Tensor]] = []
        passes: list[LayerStats] = []
        for bias_V in self.bias_OV:
            out_BSD, stats = self.moe(self.norm(hidden_BSD), with_stats)
            hidden_BSD = hidden_BSD + out_BSD
            outputs.append((hidden_BSD, bias_V))
            if stats is not None:
                passes.append(stats)
        return outputs, summed(passes) if passes else None
