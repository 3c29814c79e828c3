"""Where every weight starts, and why.

- Matrices: normal with the variance of their fan-in, 1/D for an input of width D, so that every layer's output starts with
  the variance of its input at any width (He et al. 2015; the muP papers' "standard" hidden scaling, arXiv 2203.03466).
- Matrices that write to the residual stream are scaled down by sqrt(2 * num_layers): the sum of all writes then has the
  variance of one (GPT-2, section 2.3).
- Expert matrices start like a dense MLP's, each by its own fan-in: the leading expert dimension is no fan.
- What chooses starts undecided: routers and an untied LM head are shrunk tenfold, as the Switch Transformer shrinks its
  initialisation (arXiv 2101.03961, section 2.4). Gates start near 1/E, logits near 0, the loss near ln V.
- Top-1 gates start near 1/E, so an expert's output and gradient would start E times smaller than a dense MLP's.
  `gate_scale` takes that back (0: by num_experts); `train.common_start` lets the experts share a dense MLP's beginning.
  docs/log.md has what each is worth.
- The embedding: unit variance where it enters the stream; stored at 1/D and multiplied by sqrt(D), which also gives its rows
  AdamW steps of a useful size. Tied to the head it is small and not multiplied (GPT-2): at unit variance every token would
  start out predicting itself.
"""

import math

import torch
from torch import nn

from moebius.config import ModelConfig
from moebius.model.experts import Experts
from moebius.model.router import Router

SHRINK = 0.1
TIED_STD = 0.02


@torch.no_grad()
def initialise(model: nn.Module, config: ModelConfig) -> None:
    """Draw every parameter of a Transformer from torch's global generator, in the order of its modules."""
    residual = 1 / math.sqrt(2 * config.num_layers)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            role = name.rpartition(".")[2]
            scale = {"output": residual, "down": residual, "lm_head": SHRINK, "mix": 0.0}.get(role, 1.0)  # mix: even
            _normal(module.weight, fan_in=module.in_features, scale=scale)
        elif isinstance(module, nn.Embedding):
            _normal(module.weight, fan_in=config.dim)
        elif isinstance(module, Router):
            _normal(module.weight_ED, fan_in=1, scale=SHRINK)  # the router divides by sqrt(D) itself
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
    nn.init.normal_(weight, std=scale / math.sqrt(fan_in))
