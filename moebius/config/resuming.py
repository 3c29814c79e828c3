"""The settings that a run may be given anew when it is resumed, and why it keeps the others.

This is the only list. The command line, its help and docs/runs.md follow it, and a test checks
that it covers every setting of the configuration.
"""

import math
from dataclasses import replace
from operator import attrgetter
from typing import Any

from moebius.config.fields import settings, shown
from moebius.config.tree import Config
from moebius.errors import ConfigError

TEXT = ("data.source", "data.format", "data.text_field", "data.errors", "data.tokenizer")
"""Settings that say where the text is and how it is read. They may change as long as they lead to
the same tokens, which their checksums decide: a run can be moved with its text."""

CHANGEABLE = (
    *TEXT,
    "data.cache",
    "data.workers",
    "train.steps",
    "train.batch_size",
    "train.micro_batch_size",
    "train.lr",
    "train.weight_decay",
    "train.beta1",
    "train.beta2",
    "train.grad_clip",
    "train.schedule",
    "train.warmup_steps",
    "train.decay_fraction",
    "train.min_lr_fraction",
    "train.phases",
    "train.eval_every",
    "train.eval_tokens",
    "train.checkpoint_every",
    "train.keep_last",
    "train.keep_every",
    "train.max_skipped",
    "train.max_rollbacks",
    "train.log_every",
    "train.device",
    "train.threads",
    "train.dtype",
    "train.expert_dtype",
    "parallel",
    "observe",
)
"""Settings, and whole sections, that may change when a run is resumed."""

KEPT = {
    "model": "the weights and the state of the optimizer belong to this model",
    "data.weights": "it decides the order of the data",
    "data.vocab_size": "the tokens are those of the run's tokenizer",
    "data.val_fraction": "it decides which documents are held out",
    "data.document_masking": "it decides what the model sees of a sequence",
    "train.seq_len": "the text is cut into sequences of this length",
    "train.seed": "it decides the order of the data",
    "train.optimizer": "the saved state is that optimizer's",
    "train.common_start": "the experts have begun with it",
    "train.out": "the run stays in its directory, which may be moved as a whole",
    "train.name": "the run stays in its directory, which may be renamed",
}
"""Settings, and whole sections, that a resumed run keeps, each with the reason."""


PLACE = ("train.out", "train.name")
"""Settings that a run keeps in its config.toml, although its directory may be moved or copied."""


def is_listed(setting: str, names: tuple[str, ...] | dict[str, str]) -> bool:
    """Return whether the names contain a setting, or the section that it belongs to."""
    return _entry(setting, names) is not None


def value_of(config: Config, setting: str) -> Any:
    """Return the value of a setting by its dotted name, such as `observe.cv.threshold`."""
    return attrgetter(setting)(config)


def changes(before: Config, after: Config) -> dict[str, tuple[Any, Any]]:
    """Return the old and the new value of each setting that differs, by its dotted name."""
    values = {name: (value_of(before, name), value_of(after, name)) for name in settings(Config)}
    return {name: (old, new) for name, (old, new) in values.items() if old != new}


def resumed_config(before: Config, after: Config) -> Config:
    """Return the configuration that a run of `before` goes on with if it is resumed as `after`.

    That is `after`, except that a common start of the experts ends at the same step as before,
    although it is a share of the steps. Raises ConfigError, which names the setting and the
    reason, if `after` changes a setting that a run keeps.
    """
    for name, (old, new) in changes(before, after).items():
        if not is_listed(name, CHANGEABLE):
            reason = KEPT[_entry(name, KEPT) or name]
            raise ConfigError(
                f"{name}={shown(new)}: a resumed run keeps {name}={shown(old)}, because {reason}; "
                "start a new run to change it"
            )
    return keeping_common_start(before, after)


def keeping_common_start(before: Config, after: Config) -> Config:
    """Return `after`, with a common start of the experts that ends at the same step as before."""
    share = _same_common_start(before.train.common_start, before.train.steps, after.train.steps)
    return replace(after, train=replace(after.train, common_start=share))


def misfit(trained: Config, config: Config) -> tuple[str, Any, Any] | None:
    """Return a setting that a run keeps, and in which a checkpoint differs from the run.

    trained is what the checkpoint was trained with, and config the run's configuration. The
    setting's name is followed by the checkpoint's value and the run's. None if they fit.
    """
    differences = changes(trained, config)
    if _common_steps(trained) == _common_steps(config):
        differences.pop("train.common_start", None)
    for name, (old, new) in differences.items():
        if not is_listed(name, (*CHANGEABLE, *PLACE)):
            return name, old, new
    return None


def _entry(setting: str, names: tuple[str, ...] | dict[str, str]) -> str | None:
    """Return the name in the list that stands for a setting: its own, or that of its section."""
    return next((name for name in names if f"{setting}.".startswith(f"{name}.")), None)


def _common_steps(config: Config) -> int:
    """Return the number of steps in which the experts have a common start."""
    return math.ceil(config.train.common_start * config.train.steps)


def _same_common_start(share: float, steps_before: int, steps_after: int) -> float:
    """Return the share of the new number of steps that ends at the same step as the old share."""
    if steps_before == steps_after:
        return share
    common_steps = math.ceil(share * steps_before)
    exact = min(1.0, share * steps_before / steps_after)
    if math.ceil(exact * steps_after) == min(common_steps, steps_after):
        return exact
    return (common_steps - 0.5) / steps_after  # `exact` was rounded to the next step
