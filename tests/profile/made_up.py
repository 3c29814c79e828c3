"""A profile with figures chosen so that answers are known: every component takes four times its floor."""

from dataclasses import replace
from typing import Any

from moebius.config import Config
from moebius.profile.ceilings import Ceilings
from moebius.profile.floor import components
from moebius.profile.gpu import Usage
from moebius.profile.measure import Measured
from moebius.profile.report import Profile, rows_of
from moebius.profile.timeline import Piece
from moebius.settings import override, parse_flags

LIMITS = Ceilings(1e12, 1e11)
TIMES = 4.0


def made_up(config: Config, waiting: float = 0.0, **measured: Any) -> Profile:
    """waiting: of the step, before the embedding."""
    expected = components(config, 2)
    pieces = {}
    for name, each in expected.items():
        pieces[Piece(name, "forward")] = TIMES * each.forward.seconds(LIMITS.flops, LIMITS.bytes)
        pieces[Piece(name, "backward")] = TIMES * each.backward.seconds(LIMITS.flops, LIMITS.bytes)
    busy = sum(pieces.values())
    pieces[Piece("embedding", "waiting")] = busy * waiting / (1 - waiting)
    seconds = sum(pieces.values())
    used = [float(config.model.experts_per_token(count)) for count in config.model.experts_per_layer]
    used += [3 * used[-1]] if config.model.use_mtp else []
    found = replace(Measured([seconds, 1.02 * seconds, 0.99 * seconds], pieces, 1.0, used, Usage()), **measured)
    return Profile(config, "a made-up device", "random", 2, False, LIMITS, found, rows_of(expected, found, LIMITS))


def small_config(*flags: str) -> Config:
    """Small, with so many tokens that the optimizer takes little of a step."""
    model = "--model.dim=64 --model.num_layers=4 --model.num_heads=2 --model.num_kv_heads=1 --model.vocab_size=512"
    return override(Config(), parse_flags([*model.split(), "--train.batch_size=256", "--train.seq_len=128", *flags]))
