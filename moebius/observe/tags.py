"""The figures of a logged step under tags, as TensorBoard and Weights & Biases show them.

Both sort tags by name, and make a group of those with the same first part. The digits put what
people look at first in front: loss, speed, balance. The figures of single layers come last.
"""

from collections.abc import Iterator
from dataclasses import asdict, fields

from moebius.config import MTP_OFFSETS
from moebius.observe.metrics import LayerMetrics, StepMetrics

LOSS, SPEED, BALANCE, OPTIMIZER, SOURCES = (
    "1_loss",
    "2_speed",
    "3_balance",
    "4_optimizer",
    "5_sources",
)
LAYERS_EVERY = 1 / 1000
"""With many experts, the layers' figures are written again once this fraction of the run so far
has passed since the last time: 6,000 times in 100,000 steps. TensorBoard shows 1,000 points of a
tag by default, and with every step these tags would take up more than all other files."""
LAYER = "layer_"
"""How the groups of the layers' figures begin: `layer_cv/03`."""
_OF_LAYERS = tuple(
    field.name for field in fields(LayerMetrics) if field.name != "tokens_per_expert"
)


def tags(metrics: StepMetrics, with_layers: bool = True) -> dict[str, float]:
    """Return the figures that a step has by their tags, in order.

    with_layers: include the figures of each layer. The loads of single experts are never among
    them, because they are shown as a heat map.
    """
    found = {
        f"{LOSS}/loss": metrics.loss,
        f"{LOSS}/val_loss": metrics.val_loss,
        f"{LOSS}/val_bpb": metrics.val_bpb,
        f"{LOSS}/mtp_loss": metrics.mtp_loss,
        f"{SPEED}/tokens_per_second": metrics.tokens_per_second,
        f"{SPEED}/mfu": metrics.mfu,
        f"{SPEED}/memory_gb": metrics.memory_gb,
        f"{SPEED}/tokens": float(metrics.tokens),
        f"{OPTIMIZER}/lr": metrics.lr,
        f"{OPTIMIZER}/grad_norm": metrics.grad_norm,
    }
    offsets = zip(MTP_OFFSETS, metrics.mtp_losses, strict=False)  # empty without MTP
    found |= {f"{LOSS}/mtp_loss_{offset}": loss for offset, loss in offsets}
    found |= dict(_balance(metrics))
    for name, source in metrics.val_by_source.items():
        found |= {f"{SOURCES}/{name}/{key}": value for key, value in asdict(source).items()}
    if with_layers:
        for number, layer in metrics.routed_layers:
            found |= {f"{LAYER}{n}/{number:02d}": getattr(layer, n) for n in _OF_LAYERS}
    return {tag: float(value) for tag, value in sorted(found.items()) if value is not None}


class Rarer:
    """Says in which steps to write something that becomes rarer as a run goes on."""

    def __init__(self, fraction: float):
        """Write again once this fraction of the run so far has passed since the last time."""
        self._fraction, self._last = fraction, 0

    def is_due(self, step: int) -> bool:
        """Return whether to write in this step, and take note of it if so."""
        if step - self._last < self._fraction * step:
            return False
        self._last = step
        return True

    def rewind(self, step: int) -> None:
        """Forget what was written in later steps."""
        self._last = min(self._last, step)


def _balance(metrics: StepMetrics) -> Iterator[tuple[str, float | None]]:
    """Yield the figures of balance over all layers that have experts: the worst layer's."""
    layers = [layer for _, layer in metrics.routed_layers]
    if not layers:
        return
    entropies = [x.routing_entropy for x in layers if x.routing_entropy is not None]
    yield f"{BALANCE}/cv_mean", sum(layer.cv for layer in layers) / len(layers)
    yield f"{BALANCE}/cv_worst", max(layer.cv for layer in layers)
    yield f"{BALANCE}/dead_experts", sum(layer.dead_experts for layer in layers)
    yield f"{BALANCE}/routing_entropy_worst", min(entropies, default=None)
    yield f"{BALANCE}/dropped_share_worst", max(layer.dropped_share for layer in layers)
    yield f"{BALANCE}/unrouted_share_worst", max(layer.unrouted_share for layer in layers)
    yield f"{BALANCE}/balance_loss", metrics.balance_loss
    yield f"{BALANCE}/z_loss", metrics.z_loss
