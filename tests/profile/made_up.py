"""A made-up profile for which the right answers are known, and the model that it belongs to.

Every component takes four times its floor.
"""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch

from moebius.config import Config
from moebius.config.files import override
from moebius.config.flags import parse_flags
from moebius.cost.floor import components
from moebius.hardware.backends import Backends
from moebius.hardware.ceilings import Ceilings
from moebius.profile.finding import Finding
from moebius.profile.findings import findings
from moebius.profile.measure import Measured
from moebius.profile.result import Profile, rows_of
from moebius.profile.timeline import Piece
from moebius.profile.usage import GpuUsage

LIMITS = Ceilings(1e12, 1e11)
TIMES = 4.0
PLAIN = (
    "--model.num_heads=1",
    "--model.num_kv_heads=1",
    "--model.moe_min_expansion=4",
    "--model.moe_max_expansion=4",
)
"""Flags of a model whose shapes are all multiples of tiles."""


def made_up(config: Config, waiting: float = 0.0, **measured: Any) -> Profile:
    """Return a profile of the configuration.

    waiting: share of the step in which the device waits, before the embedding. measured: fields
    of `Measured` to replace.
    """
    expected = components(config, 2)
    pieces = {}
    for name, cost in expected.items():
        pieces[Piece(name, "forward")] = TIMES * cost.forward.seconds(LIMITS.flops, LIMITS.bytes)
        pieces[Piece(name, "backward")] = TIMES * cost.backward.seconds(LIMITS.flops, LIMITS.bytes)
    busy = sum(pieces.values())
    pieces[Piece("embedding", "waiting")] = busy * waiting / (1 - waiting)
    seconds = sum(pieces.values())
    used = [
        float(config.model.experts_per_token(count)) for count in config.model.experts_per_layer
    ]
    used += [3 * used[-1]] if config.model.use_mtp else []
    figures = replace(
        Measured([seconds, 1.02 * seconds, 0.99 * seconds], pieces, 1.0, used, GpuUsage()),
        **measured,
    )
    rows = rows_of(expected, figures, LIMITS)
    return Profile(
        config, "a made-up device", "random", ("a note",), 2, False, LIMITS, figures, rows
    )


def small_config(*flags: str) -> Config:
    """Return a small model with so many tokens that the optimizer's share of a step is small."""
    shape = {
        "model.dim": 64,
        "model.num_layers": 4,
        "model.num_heads": 2,
        "model.num_kv_heads": 1,
        "model.vocab_size": 512,
        "train.batch_size": 256,
        "train.seq_len": 128,
    }
    changes = dict(flag.removeprefix("--").split("=", 1) for flag in flags)
    return override(Config(), parse_flags([f"--{k}={v}" for k, v in (shape | changes).items()]))


def stepped(profile: Profile, device: str = "cpu", **changes: Any) -> Any:
    """Return the parts of `Steps` that rules read, with an even load of the experts.

    changes: attributes of `Steps` to replace.
    """
    model, train = profile.config.model, profile.config.train
    tokens = train.batch_size * train.seq_len
    E = max(model.experts_per_layer)
    load_E = torch.full((E,), tokens / max(1, E))
    layer = SimpleNamespace(
        tokens_per_expert_E=load_E,
        tokens=torch.tensor(float(tokens)),
        dropped=torch.tensor(0.0),
    )
    steps = SimpleNamespace(
        config=profile.config,
        device=torch.device(device),
        micro_batch=train.batch_size // train.accumulation_steps,
        is_compiled=False,
        device_bytes=80e9,
        backends=Backends("loop", "sdpa_native"),
        result=SimpleNamespace(router_grad_norm_M=torch.ones(2), stats=[layer]),
    )
    for name, value in changes.items():
        setattr(steps, name, value)
    return steps


def findings_of(profile: Profile, **changes: Any) -> list[Finding]:
    """Return the findings of a profile, for a model as `stepped` returns it."""
    return findings(profile, stepped(profile, **changes))


def titles(reported: list[Finding]) -> list[str]:
    """Return the findings' titles in order."""
    return [finding.title for finding in reported]


def titled(reported: list[Finding], words: str) -> Finding:
    """Return the first finding whose title contains these words."""
    return next(finding for finding in reported if words in finding.title)
