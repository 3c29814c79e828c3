"""The initial value of every weight, and the reasons for it.

- Matrices are normal with variance 1/D, where D is the width of their input (He et al. 2015; the
  "standard" scaling of hidden matrices in the muP papers, arXiv 2203.03466). The output of every
  layer then starts with the variance of its input, at any width.
- Matrices that write to the residual stream are divided by sqrt(2 * num_layers). The sum of all
  writes then has the variance of a single one (GPT-2, section 2.3).
- The matrix of each expert starts like that of a dense MLP. Its fan-in does not count the leading
  dimension, the number of experts.
- Routers and an untied LM head are a tenth as large, as in the Switch Transformer (arXiv
  2101.03961, section 2.4), so that they start undecided: gates near 1/E, logits near 0 and the
  loss near ln V.
- With one expert per token, gates near 1/E make an expert's output and gradient start E times
  smaller than a dense MLP's. `gate_scale` compensates for that (with 0, by the number of experts),
  and `train.common_start` trains all experts as copies of one dense MLP for the first steps.
- The embedding has unit variance where it enters the residual stream. It is stored with variance
  1/D and multiplied by sqrt(D), which also gives its rows steps of a useful size under AdamW. If
  it is also the LM head, it is small and not multiplied (GPT-2), because with unit variance every
  token would start out predicting itself.
"""

import math

import torch
from torch import nn

from moebius.config import ModelConfig
from moebius.moe.experts import Experts
from moebius.moe.router import Router

SHRINK = 0.1
"""Factor on the weights of routers and of an untied LM head."""
TIED_STD = 0.02
"""Standard deviation of an embedding that is also the head."""


@torch.no_grad()
def initialize(model: nn.Module, config: ModelConfig) -> None:
    """Draw every parameter of a Transformer from torch's global generator, module by module."""
    residual = 1 / math.sqrt(2 * config.num_layers)
    # mix starts at zero, so that the base MLP and the experts have equal weights
    scales = {"output": residual, "down": residual, "lm_head": SHRINK, "mix": 0.0}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            scale = scales.get(name.rpartition(".")[2], 1.0)
            _normal(module.weight, fan_in=module.in_features, scale=scale)
        elif isinstance(module, nn.Embedding):
            _normal(module.weight, fan_in=config.dim)
        elif isinstance(module, Router):
            # the router itself divides by sqrt(D)
            _normal(module.weight_ED, fan_in=1, scale=SHRINK)
        elif isinstance(module, Experts):
            for weight in (module.w_gate_EDF, module.w_up_EDF):
                if weight is not None:
                    _normal(weight, fan_in=config.dim)
            _normal(module.w_down_EFD, fan_in=module.w_down_EFD.shape[1], scale=residual)
        elif isinstance(module, nn.RMSNorm):
            nn.init.ones_(module.weight)
    for name, parameter in model.named_parameters():
        if name.endswith("bias_OV"):
            nn.init.zeros_(parameter)
        if config.tie_embeddings and name == "embedding.weight":
            nn.init.normal_(parameter, std=TIED_STD)


def _normal(weight: torch.Tensor, fan_in: int, scale: float = 1.0) -> None:
    """Draw a weight with the standard deviation scale / sqrt(fan_in)."""
    nn.init.normal_(weight, std=scale / math.sqrt(fan_in))
