"""The feed-forward half of a transformer block, a mixture of experts.

An optional base MLP and the routed experts work on the same input, as in PR-MoE (arXiv
2201.05596).
"""

import torch
from torch import Tensor, nn

from moebius.config import ModelConfig
from moebius.moe.experts import Experts, ExpertsFunction
from moebius.moe.mlp import MLP
from moebius.moe.router import Router
from moebius.moe.statistics import LayerStats, layer_stats


class MoE(nn.Module):
    """A base MLP, routed experts, or both. Calling it returns out_BSD and routing statistics."""

    def __init__(
        self, config: ModelConfig, num_experts: int, hidden: int, run_experts: ExpertsFunction
    ):
        """Build one layer, whose expert parameters still have to be initialized.

        num_experts: the layer's number of experts; 0 makes a dense layer, which has the base MLP
        alone.
        hidden: hidden width of each expert.
        run_experts: the expert backend.
        """
        super().__init__()
        self.config = config
        self.num_experts = num_experts
        self.base = (
            MLP(config.dim, config.base_width, config.activation) if config.base_width else None
        )
        self.router = Router(config, num_experts) if num_experts else None
        self.experts = Experts(config, num_experts, hidden, run_experts) if num_experts else None
        has_both = self.base is not None and self.experts is not None
        is_mixed = has_both and config.residual_mix == "learned"
        self.mix = nn.Linear(config.dim, 2, bias=False) if is_mixed else None

    def forward(self, x_BSD: Tensor, with_stats: bool = True) -> tuple[Tensor, LayerStats | None]:
        """Return out_BSD and the statistics, which are None for a layer without experts.

        with_stats: whether to compute the statistics. For a single token, they would take longer
        than the layer.
        """
        base_BSD = self.base(x_BSD) if self.base is not None else None
        if self.router is None or self.experts is None:
            assert base_BSD is not None  # the configuration refuses a layer with neither
            return base_BSD, None
        x_TD = x_BSD.flatten(0, 1)
        routing = self.router(x_TD)
        routed_BSD = self.experts(x_TD, routing).view_as(x_BSD)
        out_BSD = self._join(x_BSD, base_BSD, routed_BSD)
        if not with_stats:
            return out_BSD, None
        groups = len(x_BSD) if self.config.aux_loss_scope == "sequence" else 1
        return out_BSD, layer_stats(self.router, routing, groups)

    def _join(self, x_BSD: Tensor, base_BSD: Tensor | None, routed_BSD: Tensor) -> Tensor:
        """Return the sum of the base MLP's output and the experts' output.

        With `mix`, return their weighted mean instead, with two weights computed for each token.
        """
        if base_BSD is None:
            return routed_BSD
        if self.mix is None:
            return base_BSD + routed_BSD
        logits = self.mix(x_BSD)
        dtype = torch.promote_types(logits.dtype, torch.float32)
        share = torch.softmax(logits, dim=-1, dtype=dtype).type_as(routed_BSD)
        return base_BSD * share[..., :1] + routed_BSD * share[..., 1:]
