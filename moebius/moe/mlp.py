"""The dense MLP, and the activation functions that it shares with the experts."""

import torch.nn.functional as F
from torch import Tensor, nn

from moebius.config import Activation


def activate(up: Tensor, gate: Tensor | None, activation: Activation) -> Tensor:
    """Return the hidden activations of an MLP from its up projection and its gate projection.

    With a gate this is SwiGLU, `silu(gate) * up` (Shazeer 2020, arXiv 2002.05202). Without one it
    is squared ReLU for "relu2" (So et al. 2021, arXiv 2109.08668), and GELU otherwise. All tensors
    have the same shape.
    """
    if gate is not None:
        return F.silu(gate) * up
    return F.relu(up).square() if activation == "relu2" else F.gelu(up)


class MLP(nn.Module):
    """An MLP on the last dimension: down(activation(up(x), gate(x))).

    Only SwiGLU has a gate.
    """

    def __init__(self, dim: int, hidden: int, activation: Activation):
        super().__init__()
        self.activation: Activation = activation
        self.gate = nn.Linear(dim, hidden, bias=False) if activation == "swiglu" else None
        self.up = nn.Linear(dim, hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the MLP's output, which has the shape of x."""
        gate = self.gate(x) if self.gate is not None else None
        return self.down(activate(self.up(x), gate, self.activation))
