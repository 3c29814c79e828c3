"""A training step, measured: as it is, and cut into components, in turns on one machine."""

import statistics
import time
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from moebius.config import Config
from moebius.data import Batches, prepare
from moebius.data.prepare import is_prepared
from moebius.data.stream import MappedShard, TokenStream
from moebius.errors import DataError, StorageError
from moebius.model.backends import is_compiled
from moebius.model.transformer import lookahead, seeded
from moebius.observe.ceiling import wait
from moebius.parallel.layout import lay_out
from moebius.profile.gpu import Usage, usage
from moebius.profile.instrument import instrument, marked_calls
from moebius.profile.kernels import marked_kernels
from moebius.profile.timeline import Piece, Place, Timeline
from moebius.train.session import backends_for, cut
from moebius.train.state import TrainState
from moebius.train.step import train_step

BATCHES = 4
WATCHED = 1.2  # times as long as by itself the host takes at least to launch a step while it is watched, docs/log.md
DOCUMENT_TOKENS = 800  # on average, where documents are kept apart: a source file's or a web page's


@dataclass(frozen=True)
class Measured:
    """A step: seconds of each round as it is, and of each piece; how many times as long it was while it was cut into them;
    experts that a token had, one number a layer and the MTP layer's last; what it made of a GPU, and about how long the host
    takes to launch it."""

    rounds: list[float]
    pieces: dict[Piece, float]
    slowdown: float
    experts_per_token: list[float]
    gpu: Usage
    host: float = 0.0

    @property
    def seconds(self) -> float:
        return statistics.median(self.rounds)

    def of(self, component: str, direction: str = "") -> float:
        """Seconds of a component, in one direction or in all."""
        return sum(took for piece, took in self.pieces.items() if component == piece.component and direction in piece.direction)

    @property
    def waiting(self) -> float:
        """Seconds in which a GPU had nothing to do."""
        return sum(took for piece, took in self.pieces.items() if piece.direction == "waiting")

    @property
    def covered(self) -> float:
        """The pieces' sum over the step as it is."""
        return sum(self.pieces.values()) / self.seconds


class Steps:
    """A model that is ready to train, and text to train it on. With a timeline its steps can be cut into pieces."""

    def __init__(self, config: Config, device: torch.device, timeline: Timeline | None = None):
        self.config, self.device, self.timeline = config, device, timeline
        self.backends = backends_for(config, device)
        model = seeded(config.train.seed, config.model, self.backends).to(device)
        self.choices = [*self.backends.reasons, *lay_out(model, config.parallel, device)]
        self.state = TrainState.new(model, config)
        self.is_compiled = is_compiled(config.parallel, device)
        if timeline is not None:
            instrument(model, self.state.optimizers, timeline, self.is_compiled)
        self.batches, end_of_text, self.text = load_text(config)
        self.end_of_text = end_of_text if config.data.document_masking else None
        with marked_kernels() if timeline is not None and self.is_compiled else nullcontext():
            self.run(3)  # in the first two everything is compiled

    @property
    def micro_batch(self) -> int:
        """Sequences in one forward pass."""
        return self.config.train.batch_size // self.config.train.accumulation_steps

    @property
    def device_bytes(self) -> float:
        """Memory of a GPU."""
        return float(torch.cuda.get_device_properties(self.device).total_memory)

    def next_batch(self) -> torch.Tensor:
        """tokens_BL, as the training loop loads them."""
        return torch.from_numpy(self.batches.at(self.state.batch)).to(self.device, non_blocking=True)

    def run(self, count: int) -> float:
        """Seconds for each of `count` steps."""
        wait(self.device)
        start = time.perf_counter()
        for _ in range(count):
            self.result = train_step(self.state, self.next_batch(), self.end_of_text, self.config.train)
        wait(self.device)
        return (time.perf_counter() - start) / count

    def cut(self, count: int) -> dict[Piece, float]:
        """The pieces of a step, in seconds, on average over `count`."""
        assert self.timeline is not None
        with marked_calls(self.timeline, self.is_compiled, self.backends.has_own_kernels):
            self.timeline.begin()
            for _ in range(count):
                self.timeline.mark(Place("data"))
                batch = self.next_batch()
                self.timeline.mark(Place())
                train_step(self.state, batch, self.end_of_text, self.config.train)
            return {piece: seconds / count for piece, seconds in self.timeline.end().items()}


def measure(config: Config, device: torch.device, seconds: float = 20.0) -> tuple[Measured, Steps]:
    """Steps as they are and cut, in turns, for about `seconds` after both have been compiled and warmed up."""
    timeline = Timeline(device)
    steps = Steps(config, device, timeline)
    once = steps.run(1)
    steps.cut(1)
    rounds = 16 if device.type == "cuda" else 64  # a GPU's profiler takes its time to start
    at_least = 3 if device.type == "cuda" else 1  # a GPU has nothing queued when a round begins, which in training it has
    per_round = max(at_least, min(10, int(seconds / rounds / once)))
    plain: list[float] = []
    pieces: list[dict[Piece, float]] = []
    host: list[float] = []
    stop = time.perf_counter() + seconds
    while len(plain) < 3 or (time.perf_counter() < stop and len(plain) < rounds):
        plain.append(steps.run(per_round))
        pieces.append(steps.cut(per_round))
        host.append(timeline.host_seconds / per_round)
    every = {piece for each in pieces for piece in each}
    gpu = usage(partial(steps.run, 1)) if device.type == "cuda" else Usage()
    seconds = statistics.median(plain)
    # held against the steps just before: a machine that is slower for a while is that for both
    shares = {
        piece: statistics.median(each.get(piece, 0.0) / before for each, before in zip(pieces, plain, strict=True))
        for piece in every
    }
    slowdown = sum(shares.values())
    medians = _without_slowdown({piece: share * seconds for piece, share in shares.items()}, seconds)
    launching = _launching(statistics.median(host), slowdown, seconds)
    return Measured(plain, medians, slowdown, _experts_per_token(steps), gpu, launching), steps


def _without_slowdown(pieces: dict[Piece, float], seconds: float) -> dict[Piece, float]:
    """Cutting a step keeps the host busy. Where that makes a GPU wait longer, the time that it waits is brought back to what
    there is of it in the step as it is; what it runs takes as long either way."""
    waiting = sum(took for piece, took in pieces.items() if piece.direction == "waiting")
    if not waiting:
        return pieces
    factor = min(1.0, max(0.0, seconds - (sum(pieces.values()) - waiting)) / waiting)
    return {piece: took * (factor if piece.direction == "waiting" else 1.0) for piece, took in pieces.items()}


def _launching(watched: float, slowdown: float, seconds: float) -> float:
    """Seconds of the host without the profiler: a step that the host bounds is slower while it is cut by as much as the host
    is, and launching a step never outlasts it."""
    return min(seconds, watched / max(WATCHED, slowdown))


def _experts_per_token(steps: Steps) -> list[float]:
    """Of the last step."""
    tokens = steps.config.train.batch_size * steps.config.train.seq_len
    model = steps.config.model
    taken = iter([layer.tokens_per_expert_E.sum().item() / tokens for layer in steps.result.stats])
    layers = [*model.experts_per_layer, *(model.experts_per_layer[-1:] if model.use_mtp else ())]
    return [next(taken) if count else 0.0 for count in layers]


def load_text(config: Config) -> tuple[Batches, int, str]:
    """The configured text where it has been prepared, else random documents; its separator; and which of the two, in words."""
    train, ahead, vocab_size = config.train, lookahead(config.model), config.model.vocab_size
    with suppress(DataError, StorageError):
        if is_prepared(config.data, vocab_size):
            corpus = prepare(config.data, vocab_size)
            return cut(config, corpus), corpus.tokenizer.end_of_text, config.data.source
    generator = np.random.default_rng(train.seed)
    length = BATCHES * train.batch_size * train.seq_len + ahead
    tokens = generator.integers(1, vocab_size, length, dtype=np.uint32)
    tokens[generator.random(length) < 1 / DOCUMENT_TOKENS] = 0
    stream = TokenStream([MappedShard(Path("random"), tokens)], vocab_size, 1, length)
    batches = Batches(stream, train.seq_len, train.batch_size, train.seed, ahead)
    return batches, 0, f"random, {DOCUMENT_TOKENS} tokens a document ({config.data.source} is not prepared: `moebius data`)"
