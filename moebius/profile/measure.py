"""A training step, measured as it is and cut into components, in turns on one machine."""

import statistics
import time
from dataclasses import dataclass
from functools import partial

import torch

from moebius.config import Config
from moebius.profile.steps import Steps
from moebius.profile.timeline import Piece, Timeline
from moebius.profile.usage import Usage, usage

# The host takes at least this many times as long to launch a step while a profiler watches it:
# docs/log/profiling.md.
WATCHED = 1.2


@dataclass(frozen=True)
class Measured:
    """The times of a training step."""

    rounds: list[float]
    """Seconds of a step as it is, in each round of the measurement."""
    pieces: dict[Piece, float]
    """Seconds of each piece of a step."""
    slowdown: float
    """How many times as long a step took while it was cut into pieces."""
    experts_per_token: list[float]
    """Mean number of experts that took a token, in each layer. The MTP layer comes last, over its
    three passes."""
    gpu: Usage
    """What the step uses of a GPU apart from time."""
    host: float = 0.0
    """Seconds that the host takes to launch a step, about. 0 on a CPU."""

    @property
    def seconds(self) -> float:
        """Seconds of a step: the median of the rounds."""
        return statistics.median(self.rounds)

    def of(self, component: str, direction: str = "") -> float:
        """Return the seconds of a component, in one direction or (the default) in all of them."""
        return sum(
            seconds
            for piece, seconds in self.pieces.items()
            if component == piece.component and direction in piece.direction
        )

    @property
    def waiting(self) -> float:
        """Seconds in which a GPU had nothing to do."""
        return sum(
            seconds for piece, seconds in self.pieces.items() if piece.direction == "waiting"
        )

    @property
    def covered(self) -> float:
        """Sum of the pieces as a share of the step as it is."""
        return sum(self.pieces.values()) / self.seconds


def measure(config: Config, device: torch.device, seconds: float = 20.0) -> tuple[Measured, Steps]:
    """Return the times of a configuration's step, and the model that ran it.

    Steps as they are and steps that are cut into pieces take turns, for about `seconds` after
    everything has been compiled. So a machine that is slower for a while is slower for both.
    """
    on_gpu = device.type == "cuda"
    timeline = Timeline(device)
    steps = Steps(config, device, timeline)
    seconds_per_step = steps.run(1)
    steps.cut(1)
    max_rounds = 16 if on_gpu else 64  # starting a GPU's profiler takes time
    # When a round begins, a GPU has nothing in its queue, which during training it has.
    fewest_steps = 3 if on_gpu else 1
    per_round = max(fewest_steps, min(10, int(seconds / max_rounds / seconds_per_step)))
    plain: list[float] = []
    cut: list[dict[Piece, float]] = []
    host: list[float] = []
    stop = time.perf_counter() + seconds
    while len(plain) < 3 or (time.perf_counter() < stop and len(plain) < max_rounds):
        plain.append(steps.run(per_round))
        cut.append(steps.cut(per_round))
        host.append(timeline.host_seconds / per_round)
    gpu = usage(partial(steps.run, 1), device) if on_gpu else Usage()
    step_seconds = statistics.median(plain)
    shares = _shares(plain, cut)
    slowdown = sum(shares.values())
    pieces = {piece: share * step_seconds for piece, share in shares.items()}
    measured = Measured(
        rounds=plain,
        pieces=without_slowdown(pieces, step_seconds),
        slowdown=slowdown,
        experts_per_token=_experts_per_token(steps),
        gpu=gpu,
        host=launch_seconds(statistics.median(host), slowdown, step_seconds),
    )
    return measured, steps


def _shares(plain: list[float], cut: list[dict[Piece, float]]) -> dict[Piece, float]:
    """Return each piece's time as a share of a step: the median over the rounds.

    A round's pieces are compared with the steps just before them, because a machine may change its
    speed from round to round.
    """
    return {
        piece: statistics.median(
            pieces.get(piece, 0.0) / seconds for pieces, seconds in zip(cut, plain, strict=True)
        )
        for piece in {piece for pieces in cut for piece in pieces}
    }


def without_slowdown(pieces: dict[Piece, float], seconds: float) -> dict[Piece, float]:
    """Return the pieces of a step that takes `seconds`, without what cutting it has added.

    Cutting keeps the host busy, and that can make a GPU wait longer. The time that it waits is
    shortened so that all pieces fit into the step. The time that it works is the same either way.
    """
    waiting = sum(took for piece, took in pieces.items() if piece.direction == "waiting")
    if not waiting:
        return pieces
    busy = sum(pieces.values()) - waiting
    factor = min(1.0, max(0.0, seconds - busy) / waiting)
    return {
        piece: took * (factor if piece.direction == "waiting" else 1.0)
        for piece, took in pieces.items()
    }


def launch_seconds(watched: float, slowdown: float, seconds: float) -> float:
    """Return the seconds that the host takes to launch a step when no profiler watches it.

    watched: what it takes while a profiler does. If the host is what bounds the step, the step is
    slowed down by as much as the host is. Launching a step never takes longer than the step.
    """
    return min(seconds, watched / max(WATCHED, slowdown))


def _experts_per_token(steps: Steps) -> list[float]:
    """Return the figures of the last step that ran."""
    tokens = steps.config.train.batch_size * steps.config.train.seq_len
    model = steps.config.model
    routed = iter(
        [layer.tokens_per_expert_E.sum().item() / tokens for layer in steps.result.stats]
    )
    layers = [*model.experts_per_layer, *(model.experts_per_layer[-1:] if model.use_mtp else ())]
    return [next(routed) if count else 0.0 for count in layers]
