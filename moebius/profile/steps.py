"""A model that is ready to train, whose steps can be timed and cut into components."""

import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from moebius.config import Config
from moebius.cost.layer_time import DOCUMENT_TOKENS
from moebius.data import Batches, Feed, TokenStream, prepare
from moebius.data.prepare import is_prepared
from moebius.data.stream import MappedShard
from moebius.errors import DataError, StorageError
from moebius.hardware.backends import backends_for, is_compiled
from moebius.hardware.device import check_fits, total_memory, wait
from moebius.hardware.threads import use_threads
from moebius.model.transformer import lookahead, seeded
from moebius.parallel.layout import lay_out
from moebius.profile.instrument import instrument, marked_calls
from moebius.profile.kernels import marked_kernels
from moebius.profile.timeline import Piece, Place, Timeline
from moebius.train.session import feed_for
from moebius.train.state import TrainState
from moebius.train.step import train_step

RANDOM_BATCHES = 4


class Steps:
    """A seeded model on a device, and text to train it on.

    Creating it runs three steps, so that everything is compiled. With a timeline, its steps can be
    cut into pieces.
    """

    def __init__(self, config: Config, device: torch.device, timeline: Timeline | None = None):
        self.config, self.device, self.timeline = config, device, timeline
        check_fits(config, device)
        use_threads(config.train.threads)
        self.backends = backends_for(config, device)
        model = seeded(config.train.seed, config.model, self.backends).to(device)
        self.choices = [*self.backends.reasons, *lay_out(model, config.parallel, device)]
        self.state = TrainState.new(model, config)
        self.is_compiled = is_compiled(config.parallel, device)
        if timeline is not None:
            instrument(model, self.state.optimizers, timeline, self.is_compiled)
        self.feed, self.text, self.notes = feed_of(config, device)
        with marked_kernels() if timeline is not None and self.is_compiled else nullcontext():
            self.run(3)  # the first two compile

    @property
    def micro_batch(self) -> int:
        """Number of sequences in one forward pass."""
        return self.config.train.batch_size // self.config.train.accumulation_steps

    @property
    def device_bytes(self) -> float:
        """Memory of the GPU in bytes. Not defined for a CPU."""
        return total_memory(self.device)

    def next_batch(self) -> Tensor:
        """Return tokens_BL of the next step, loaded in the same way as in the training loop."""
        return self.feed.at(self.state.sequences)

    def run(self, count: int) -> float:
        """Run `count` steps, and return the mean seconds per step."""
        wait(self.device)
        start = time.perf_counter()
        for _ in range(count):
            self._step(self.next_batch())
        wait(self.device)
        return (time.perf_counter() - start) / count

    def cut(self, count: int) -> dict[Piece, float]:
        """Run `count` steps, and return the mean seconds of each piece per step."""
        assert self.timeline is not None
        with marked_calls(self.timeline, self.is_compiled, self.backends.expert_record.is_fused):
            self.timeline.begin()
            for _ in range(count):
                self.timeline.mark(Place("data"))
                tokens_BL = self.next_batch()
                self.timeline.mark(Place())
                self._step(tokens_BL)
            return {piece: seconds / count for piece, seconds in self.timeline.end().items()}

    def _step(self, tokens_BL: Tensor) -> None:
        separator = self.feed.separator
        self.result = train_step(self.state, tokens_BL, separator, self.config.train)


def feed_of(config: Config, device: torch.device) -> tuple[Feed, str, tuple[str, ...]]:
    """Return a feed of the configured text to the device, and the text's description and notes.

    The notes are those of the corpus, about what was read and what was passed over. If the
    configured text cannot be used or has not been prepared, which could take hours, random
    documents replace it.
    """
    train, ahead, vocab_size = config.train, lookahead(config.model), config.model.vocab_size
    reason = f"{config.data.source} has not been prepared; `moebius data` does that"
    try:
        if is_prepared(config.data, vocab_size):
            corpus = prepare(config.data, vocab_size)
            return feed_for(config, corpus, device), config.data.source, corpus.notes
    except (DataError, StorageError) as error:
        reason = str(error)
    generator = np.random.default_rng(train.seed)
    length = RANDOM_BATCHES * train.batch_size * train.seq_len + ahead
    tokens = generator.integers(1, vocab_size, length, dtype=np.uint32)
    separator = 0
    tokens[generator.random(length) < 1 / DOCUMENT_TOKENS] = separator
    stream = TokenStream([MappedShard(Path("random"), tokens)], vocab_size, 1, length)
    batches = Batches(stream, train.seq_len, train.batch_size, train.seed, ahead)
    feed = Feed(batches, device, separator if config.data.document_masking else None)
    return feed, f"random, {DOCUMENT_TOKENS} tokens per document ({reason})", ()
