"""`moebius ablate`: variants of a configuration, measured and trained in turns.

Each variant has its own process. Because they take turns, other work on the machine affects all of
them equally.
"""

from collections.abc import Callable, Sequence

from moebius.ablate.ablation import AblateOptions, Ablation
from moebius.ablate.comparison import Outcome
from moebius.ablate.learning import learn_variants
from moebius.ablate.stage import NoRoomError, Stage
from moebius.ablate.timing import time_variants
from moebius.ablate.variants import Variant
from moebius.errors import DataError, MoebiusError
from moebius.train.interruption import interruptible, signal_of

Say = Callable[[str], None]
NO_ROOM = "the variants do not fit into memory at the same time: "
FRESH_PROCESSES = "each had a fresh process for each turn, and only one was alive at a time"
ONE_BY_ONE = "they learned one after the other"


def ablate(variants: Sequence[Variant], options: AblateOptions, say: Say) -> Ablation:
    """Measure the variants and, if the options say so, train them.

    say takes lines of progress. If a variant fails, its outcome says why. After a signal, the
    ablation has what was measured until then. Raises MoebiusError if the text of the first variant
    cannot be prepared.
    """
    ablation = Ablation(options, [Outcome(variant, variant.problem) for variant in variants])
    with interruptible():
        try:
            _measure(ablation, say)
        except KeyboardInterrupt as interrupt:
            ablation.cut_short(signal_of(interrupt))
    return ablation


def _measure(ablation: Ablation, say: Say) -> None:
    options = ablation.options
    if options.learns:
        _prepare(ablation, say)
    stage = Stage()
    for phase in (time_variants, learn_variants) if options.learns else (time_variants,):
        try:
            with stage:
                phase(ablation, stage, say)
        except NoRoomError:
            how = FRESH_PROCESSES if phase is time_variants else ONE_BY_ONE
            ablation.notes.append(NO_ROOM + how)
            stage.is_alone = True
            with stage:
                phase(ablation, stage, say)


def _prepare(ablation: Ablation, say: Say) -> None:
    """Prepare the variants' texts before several processes need them at the same time."""
    from moebius.data import prepare

    for outcome in ablation.sound:
        config = outcome.variant.config
        try:
            corpus = prepare(config.data, config.model.vocab_size, report=say)
            ablation.add_notes(corpus.notes)
            if corpus.lossy:
                raise DataError(
                    f"data.tokenizer={config.data.tokenizer!r}: loses text ({corpus.lossy}), so "
                    "that bits per byte cannot be compared"
                )
        except MoebiusError as error:
            if outcome is ablation.outcomes[0]:
                raise
            outcome.problem = str(error)
