"""Measure a training step, both undisturbed and cut into components, in turns on one machine."""

import statistics
import time
from dataclasses import dataclass
from functools import partial

import torch

from moebius.config import Config
from moebius.hardware.processor import Watch
from moebius.profile.steps import Steps
from moebius.profile.timeline import Piece, Timeline
from moebius.profile.usage import GpuUsage, usage

# While a profiler watches, the host takes at least this many times as long to launch a step
# (docs/log/profiling.md).
WATCHED = 1.2


@dataclass(frozen=True)
class Measured:
    """The times of a training step."""

    rounds: list[float]
    """Seconds of an undisturbed step, in each round of the measurement."""
    pieces: dict[Piece, float]
    """Seconds of each piece of a step."""
    slowdown: float
    """Time of a step that was cut into pieces, divided by that of an undisturbed step."""
    experts_per_token: list[float]
    """Mean number of experts that took a token, in each layer. The MTP layer comes last, summed
    over its three passes."""
    gpu: GpuUsage
    """Other costs of the step on a GPU: memory, and waits of the host."""
    host: float = 0.0
    """Approximate seconds that the host takes to launch a step. 0 on a CPU."""
    crowding: str = ""
    """Who else used the processor during the measurement, in words. Empty if nobody did."""

    @property
    def seconds(self) -> float:
        """Seconds of a step: the median of the rounds."""
        return statistics.median(self.rounds)

    def of(self, component: str, direction: str = "") -> float:
        """Return the seconds of a component in one direction or, by default, in all directions."""
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
        """Sum of the pieces as a share of an undisturbed step."""
        return sum(self.pieces.values()) / self.seconds


def measure(config: Config, device: torch.device, seconds: float = 20.0) -> tuple[Measured, Steps]:
    """Return the times of a configuration's step, and the model that ran it.

    Undisturbed steps and steps that are cut into pieces take turns, for about `seconds` after
    everything has been compiled. A temporary slowdown of the machine thus affects both.
    """
    on_gpu = device.type == "cuda"
    timeline = Timeline(device)
    steps = Steps(config, device, timeline)
    seconds_per_step = steps.run(1)
    steps.cut(1)
    max_rounds = 16 if on_gpu else 64  # starting a GPU's profiler takes time
    # At the beginning of a round, the GPU's queue is empty, which it never is during training.
    fewest_steps = 3 if on_gpu else 1
    per_round = max(fewest_steps, min(10, int(seconds / max_rounds / seconds_per_step)))
    plain: list[float] = []
    cut: list[dict[Piece, float]] = []
    host: list[float] = []
    watch = Watch()
    stop = time.perf_counter() + seconds
    while len(plain) < 3 or (time.perf_counter() < stop and len(plain) < max_rounds):
        plain.append(steps.run(per_round))
        cut.append(steps.cut(per_round))
        host.append(timeline.host_seconds / per_round)
    crowding = watch.usage().crowding
    gpu = usage(partial(steps.run, 1), device) if on_gpu else GpuUsage()
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
        crowding=crowding,
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
    """Return the pieces of a step that takes `seconds`, without the time that cutting has added.

    Cutting keeps the host busy, which can make a GPU wait longer. Its waiting time is shortened so
    that all pieces fit into the step. Its working time is the same with and without cutting.
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

    watched: the seconds while a profiler watches. If the host bounds the step, the profiler slows
    down the step as much as the host. Launching a step never takes longer than the step.
    """
    return min(seconds, watched / max(WATCHED, slowdown))


def _experts_per_token(steps: Steps) -> list[float]:
    """Return `Measured.experts_per_token` of the last step that ran."""
    tokens = steps.config.train.batch_size * steps.config.train.seq_len
    model = steps.config.model
    routed = iter(
        [layer.tokens_per_expert_E.sum().item() / tokens for layer in steps.result.stats]
    )
    layers = [*model.experts_per_layer, *(model.experts_per_layer[-1:] if model.use_mtp else ())]
    return [next(routed) if count else 0.0 for count in layers]
