"""Warn about settings that can be trained with but are probably not what was meant."""

from moebius.config import Config
from moebius.data import Corpus

MOST_EPOCHS = 4
"""Epochs up to which repeated text is about as good as new text (Muennighoff et al. 2023, arXiv
2305.16264)."""
FEWEST_USED_IDS = 0.9
"""Share of the vocabulary that the tokenizer uses at least. A vocabulary may be rounded up."""


def cautions(config: Config, corpus: Corpus) -> list[str]:
    """Return a line for each thing to beware of, none for most runs."""
    model, train = config.model, config.train
    lines = []
    if corpus.tokenizer.size < FEWEST_USED_IDS * model.vocab_size:
        lines.append(
            f"the tokenizer has {corpus.tokenizer.size:,} ids, so "
            f"{model.vocab_size - corpus.tokenizer.size:,} of the {model.vocab_size:,} in "
            f"model.vocab_size are never used; set --model.vocab_size {corpus.tokenizer.size}"
        )
    weights = sum(part.weight for part in corpus.train.parts)
    for number, part in enumerate(corpus.train.parts, start=1):
        tokens = train.steps * train.batch_size * train.seq_len * part.weight / weights
        epochs = tokens / (part.stop - part.start)
        if epochs > MOST_EPOCHS:
            text = f"source {number}" if len(corpus.train.parts) > 1 else "the text"
            lines.append(
                f"{text} is read {epochs:.0f} times ({part.stop - part.start:,} tokens); a model "
                f"gains little after {MOST_EPOCHS} times and begins to learn it by heart"
            )
    if train.steps < train.warmup_steps:
        lines.append(
            f"train.steps={train.steps} is below train.warmup_steps={train.warmup_steps}, so the "
            f"learning rate never reaches {train.lr:g}"
        )
    return [f"WARNING: {line}" for line in lines]
