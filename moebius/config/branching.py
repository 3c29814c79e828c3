"""The settings that a branch of a run may be given anew, and why it keeps the others.

A branch may change all that a resumed run may (moebius/config/resuming.py), and more, because it
is another run, which only has to begin with the same weights.
"""

from dataclasses import replace

from moebius.config.fields import shown
from moebius.config.resuming import CHANGEABLE as RESUMABLE
from moebius.config.resuming import PLACE, changes, is_listed, keeping_common_start
from moebius.config.tree import Config
from moebius.errors import ConfigError

TEXT_AND_ORDER = (
    "data.weights",
    "data.val_fraction",
    "data.document_masking",
    "train.seq_len",
    "train.seed",
)
"""Settings that decide what text is read and in which order. A branch may also have another
data.source, as long as its tokenizer stays."""

BALANCE = (
    "model.aux_loss_coeff",
    "model.aux_loss_scope",
    "model.router_z_loss_coeff",
    "model.router_bias_rate",
    "model.router_jitter",
    "model.expert_dropout",
    "model.capacity_factor",
    "model.eval_capacity_factor",
    "model.mtp_loss_coeff",
    "model.rope_theta",
)
"""Settings of the model to which the weights fit, whatever their value is."""

CHANGEABLE = (*RESUMABLE, *TEXT_AND_ORDER, *BALANCE, *PLACE)
"""Settings, and whole sections, that may change in a branch."""

KEPT = {
    "model": "the weights do not fit another model",
    "data.vocab_size": "the tokens are those of the run's tokenizer",
    "train.optimizer": "the saved state is that optimizer's",
    "train.common_start": "the experts have begun with it",
}
"""Settings, and whole sections, that a branch keeps, each with the reason."""


def branched_config(before: Config, after: Config) -> Config:
    """Return the configuration of a branch that is given `after`, from a step of `before`.

    That is `after`, except that a common start of the experts ends at the same step as before.
    Raises ConfigError, which names the setting and the reason, if `after` changes a setting that a
    branch keeps.
    """
    for name, (old, new) in changes(before, after).items():
        if not is_listed(name, CHANGEABLE):
            reason = next(text for kept, text in KEPT.items() if is_listed(name, (kept,)))
            raise ConfigError(
                f"{name}={shown(new)}: a branch keeps {name}={shown(old)}, because {reason}"
            )
    return keeping_common_start(before, after)


def at_its_place(trained: Config, latest: Config) -> Config:
    """Return the settings that a step was trained with, with the text where it is now.

    trained: the settings of the step.
    latest: those that the run had last. It may have been moved with its text since.
    """
    data, own = trained.data, latest.data
    names = ("source", "format", "text_field", "errors", "tokenizer", "cache", "workers")
    values = {name: getattr(own, name) for name in names}
    return replace(trained, data=replace(data, **values))
