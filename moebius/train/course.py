"""The course of a run through its phases: the settings and the batch of each step.

The phase follows from the tokens so far, so a resumed run is in the same phase. The state has what
else a resumed run needs: the stretch, which says how the text is cut and mixed, and since when.
"""

from dataclasses import replace

import torch

from moebius.config import Config
from moebius.config.in_phases import all_phases, mixture_in_phase
from moebius.data import Batches, Corpus, Feed, check_evaluable
from moebius.data.batches import Stretch
from moebius.errors import ConfigError
from moebius.model.transformer import lookahead
from moebius.parallel.process import Process
from moebius.train.state import TrainState


class Course:
    """Leads a run through its phases. A run without phases has one.

    Raises DataError, when it is created, if the training text is too short for one batch of any
    phase, or the held-out text too short to be evaluated.
    """

    def __init__(
        self, config: Config, corpus: Corpus, device: torch.device, process: Process | None = None
    ):
        process = process or Process()
        self._config, self._corpus = config, corpus
        check_evaluable(corpus.val, lookahead(config.model))
        self._plain = all_phases(config)
        self._stretches = [
            Stretch(plain.train.seq_len, _mixture(config, number, corpus))
            for number, plain in enumerate(self._plain)
        ]
        first, *_ = [
            self._batches(stretch, plain.train.batch_size)
            for stretch, plain in zip(self._stretches, self._plain, strict=True)
        ]
        self.feed = Feed(first, device, corpus.separator, process.rank, process.world_size)
        """The batches of the current phase."""

    def next_step(self, state: TrainState) -> tuple[Config, Feed]:
        """Return the plain configuration of the next step, and the feed that has its batch.

        If the text is cut or mixed in another way from this step on, the state begins a new
        stretch.
        """
        number = self._config.train.phase_at(state.tokens)
        plain, wanted = self._plain[number], self._stretches[number]
        stretch = state.stretch or base_stretch(self._config, self._corpus)
        if stretch[:2] != wanted[:2]:
            stretch = state.stretch = self._following(stretch, state.sequences, wanted)
        now = self.feed.batches
        if (now.stretch, now.batch_size) != (stretch, plain.train.batch_size):
            self.feed = replace(self.feed, batches=self._batches(stretch, plain.train.batch_size))
        return plain, self.feed

    def _following(self, before: Stretch, first: int, wanted: Stretch) -> Stretch:
        """Return the stretch that is cut and mixed as `wanted`, from sequence `first` on."""
        if first == before.first and not before.taken:  # nothing has been read yet
            return wanted._replace(first=first)
        return self._batches(before, 1).following(first, wanted.seq_len, wanted.weights)

    def _batches(self, stretch: Stretch, batch_size: int) -> Batches:
        seed, ahead = self._config.train.seed, lookahead(self._config.model)
        return Batches(self._corpus.train, stretch.seq_len, batch_size, seed, ahead, stretch)


def base_stretch(config: Config, corpus: Corpus) -> Stretch:
    """Return the stretch of a run whose text is cut and mixed as `train` and `data` say."""
    return Stretch(config.train.seq_len, tuple(part.weight for part in corpus.train.parts))


def _mixture(config: Config, number: int, corpus: Corpus) -> tuple[float, ...]:
    """Return the weight of each source of the corpus in a phase."""
    if not config.train.phases or not config.train.phases[number].weights:
        return base_stretch(config, corpus).weights
    mixture = mixture_in_phase(config, number)
    if len(mixture) != len(corpus.train.parts):
        raise ConfigError(
            f"train.phases[{number + 1}].weights: data.source={config.data.source!r} is one "
            "source whose name has a comma; write ? in its place"
        )
    return mixture
