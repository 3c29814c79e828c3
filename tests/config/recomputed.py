"""Count the operators that the backward pass of a small model runs."""

from collections import Counter
from dataclasses import replace
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from moebius.hardware.backends import Backends
from moebius.model.transformer import seeded
from moebius.parallel.recompute import recompute_in_backward
from tests.parallel.models import SMALL, tokens_of


class CountedOperators(TorchDispatchMode):
    """A context in which every operator that torch runs is counted by its name."""

    def __init__(self):
        super().__init__()
        self.counts = Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[str(func).removesuffix(".default")] += 1
        return func(*args, **(kwargs or {}))


def operators_in_backward(
    checkpointing: str, experts: str = "loop", attention: str = "sdpa_native"
) -> Counter[str]:
    """Return how often each operator runs in the backward pass of a small model on a CPU.

    checkpointing: as `parallel.activation_checkpointing`. experts, attention: as in `Backends`.
    """
    config = replace(SMALL, num_layers=1, expert_dropout=0.0)
    model = seeded(0, config, Backends(experts, attention))
    recompute_in_backward(model, checkpointing)
    loss = model.loss(tokens_of(), end_of_text=3)
    with CountedOperators() as counted:
        loss.total.backward()
    return counted.counts
