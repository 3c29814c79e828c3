"""Remarks of the summary on settings that can be run together but perhaps were not meant so."""

from collections.abc import Iterator

from moebius.config import Config
from moebius.config.in_phases import largest_phase, mixture_in_phase
from moebius.config.routers import ROUTERS
from moebius.data import Corpus
from moebius.train.schedule import learning_rate

ROUNDED_TO = 128
"""Vocabularies are often rounded up to a multiple of this, for the sake of the products' shapes.
Fewer unused ids are no mistake."""
USEFUL_EPOCHS = 4
"""Up to this many epochs, repeated text is about as good as new text (Muennighoff et al. 2023,
arXiv 2305.16264)."""


def remarks(config: Config, corpus: Corpus) -> Iterator[tuple[str, str]]:
    """Yield rows of a name and a text; none if there is nothing to remark."""
    if text := _unused_ids(config, corpus):
        yield "vocabulary", text
    if text := _epochs(config, corpus):
        yield "epochs", text
    if text := _warm_up(config):
        yield "warm-up", text
    if text := _micro_batches(config):
        yield "micro-batches", text


def _unused_ids(config: Config, corpus: Corpus) -> str:
    size, vocab_size = corpus.tokenizer.size, config.model.vocab_size
    if vocab_size - size < ROUNDED_TO:
        return ""
    return (
        f"the tokenizer has {size:,} ids: {vocab_size - size:,} of the model's {vocab_size:,} are "
        f"never used; --model.vocab_size {size} would do"
    )


def _epochs(config: Config, corpus: Corpus) -> str:
    """Return how often the run reads its text, if it reads any of it more than once.

    With several sources, this is the one that is read most often.
    """
    parts = corpus.train.parts
    epochs = [
        tokens / (part.stop - part.start)
        for tokens, part in zip(_tokens_per_source(config, corpus), parts, strict=True)
    ]
    most = max(epochs)
    if most <= 1:
        return ""
    which = f"source {epochs.index(most) + 1} of data.source" if len(parts) > 1 else "the text"
    more = f"; repeating it more than {USEFUL_EPOCHS} times gains little" * (most > USEFUL_EPOCHS)
    return f"the run reads {which} {most:.1f} times{more}"


def _tokens_per_source(config: Config, corpus: Corpus) -> list[float]:
    """Return how many tokens the run reads of each source, over all phases."""
    train, base = config.train, [part.weight for part in corpus.train.parts]
    whole = train.steps * train.batch_size * train.seq_len
    begin, totals = 0, [0.0] * len(base)
    for number in range(max(1, len(train.phases))):
        end = train.phases[number].until if train.phases else whole
        mixture = mixture_in_phase(config, number) if train.phases else base
        for source, weight in enumerate(mixture[: len(base)]):
            totals[source] += (end - begin) * weight / sum(mixture)
        begin = end
    return totals


def _warm_up(config: Config) -> str:
    train = config.train
    if train.phases or train.steps > train.warmup_steps:
        return ""
    highest = learning_rate(train.steps - 1, train)
    return (
        f"train.warmup_steps={train.warmup_steps} is not below the run's {train.steps} steps: the "
        f"learning rate rises to {highest:.3g} and never decays (train.lr={train.lr:g})"
    )


def _micro_batches(config: Config) -> str:
    """Return what depends on the size of the micro-batches, if there are several in a step.

    Nothing else in the loss or its gradient does.
    """
    model, parts = config.model, largest_phase(config).train.accumulation_steps
    if parts == 1 or not any(model.experts_per_layer):
        return ""
    exceptions = []
    if model.aux_loss_coeff and model.aux_loss_scope == "micro_batch":
        exceptions.append("is balanced on its own")
    if model.aux_loss_coeff and model.aux_loss_scope == "global_batch":
        exceptions.append("is balanced over those up to it")
    if ROUTERS[model.router_type].has_capacity:
        exceptions.append("has an expert capacity of its own")
    if not exceptions:
        return ""
    return (
        f"each of the step's {parts} {' and '.join(exceptions)}; nothing else depends on "
        "train.micro_batch_size"
    )
