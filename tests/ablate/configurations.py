"""Made-up variants with figures for which the right answers are known."""

from collections.abc import Sequence
from dataclasses import replace

from moebius.ablate.ablation import AblateOptions, Ablation
from moebius.ablate.comparison import Outcome, Point
from moebius.ablate.variants import Variant
from moebius.config import Config, ModelConfig, TrainConfig
from moebius.config.presets import dense_twin

D = 128
MODEL = ModelConfig(
    vocab_size=2048,
    dim=D,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    num_experts=4,
    moe_min_expansion=4,
    moe_max_expansion=4,
)
CONFIG = Config(model=MODEL, train=TrainConfig(batch_size=2, seq_len=100, warmup_steps=2))
TWIN = Variant("dense twin", (), replace(CONFIG, model=dense_twin(MODEL)), is_twin=True)


def outcome(
    name: str = "some",
    rounds: Sequence[float] = (1.0,),
    turns: Sequence[float] = (),
    curves: Sequence[Sequence[tuple[int, float]]] = (),
    variant: Variant | None = None,
    **model: object,
) -> Outcome:
    """Return made-up measurements of a variant whose model has these changes.

    curves: for each seed, pairs of a step and the bits per byte there; the loss is twice as high.
    """
    config = replace(CONFIG, model=replace(MODEL, **model))  # pyright: ignore[reportArgumentType]
    points = [[Point(step, 2 * bits, bits) for step, bits in curve] for curve in curves]
    return Outcome(
        variant or Variant(name, (), config),
        device="CPU",
        rounds=list(rounds),
        turns=list(turns),
        curves=points,
    )


def ablation(
    *outcomes: Outcome, notes: Sequence[str] = (), learn_seconds: float = 0.0
) -> Ablation:
    """Return an ablation with these outcomes."""
    return Ablation(AblateOptions(learn_seconds=learn_seconds), list(outcomes), list(notes))
