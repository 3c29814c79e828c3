"""Multi-token prediction (Gloeckle et al. 2024, arXiv 2404.19737): the hidden state of token t also predicts t+2, t+3, t+4.

One shared MoE layer is applied once per offset, each time to the result of the time before (as DeepSeek-V3's modules are
chained, arXiv 2412.19437, section 2.2): fed the same state each time it could not tell the offsets apart.
"""

import torch
from torch import Tensor, nn

from moebius.config import MTP_OFFSETS, ModelConfig
from moebius.model.experts import ExpertsFunction
from moebius.model.moe import MoE
from moebius.model.statistics import LayerStats, summed


class MultiTokenPrediction(nn.Module):
    """hidden_BSD -> for each offset its hidden state and logit bias_V, and the shared layer's statistics over all passes."""

    def __init__(self, config: ModelConfig, run_experts: ExpertsFunction):
        super().__init__()
        self.norm = nn.RMSNorm(config.dim, config.norm_eps)
        self.moe = MoE(config, config.experts_per_layer[-1], config.expert_widths[-1], run_experts)
        self.bias_OV = nn.Parameter(torch.empty(len(MTP_OFFSETS), config.vocab_size))

    def forward(self, hidden_BSD: Tensor) -> tuple[list[tuple[Tensor, Tensor]], LayerStats | None]:
        outputs: list[tuple[Tensor, Tensor]] = []
        passes: list[LayerStats] = []
        for bias_V in self.bias_OV:
            out_BSD, stats = self.moe(self.norm(hidden_BSD))
            hidden_BSD = hidden_BSD + out_BSD
            outputs.append((hidden_BSD, bias_V))
            if stats is not None:
                passes.append(stats)
        return outputs, summed(passes) if passes else None
