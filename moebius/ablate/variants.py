"""The variants of a configuration: other field values, resized experts, and the dense twin.

Experts are resized so that a variant has as many active parameters as the configuration itself.
This does not import torch.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, make_dataclass, replace
from itertools import product
from typing import get_type_hints

from moebius.config import Config, ModelConfig, hidden_width
from moebius.config.fields import check_fields
from moebius.config.files import override
from moebius.config.flags import parse_flags
from moebius.config.model import WIDTH_MULTIPLE
from moebius.config.presets import dense_twin
from moebius.cost.counts import active_parameters
from moebius.errors import ConfigError

SAME_COMPUTE = 0.02
"""Two variants have equal compute if their active parameters differ by at most this share."""
SECTIONS = ("model", "data", "train", "parallel")
"""Sections of the configuration whose fields may vary."""

UNMEASURED = (
    *("data.cache", "data.workers"),
    *("train.out", "train.name", "train.steps", "train.log_every", "train.eval_every"),
    *("train.checkpoint_every", "train.keep_last", "train.keep_every", "train.max_rollbacks"),
)
"""Settings of where and how often a run writes, and of its length, which --learn replaces. No
figure of an ablation depends on them."""


@dataclass(frozen=True)
class Variant:
    """A configuration with some changes, or the reason why these changes are not possible."""

    name: str
    flags: tuple[str, ...]
    """The changes, as flags of the command line."""
    resolved: Config | None
    """The configuration with the changes. None if there is a `problem`."""
    problem: str = ""
    """Why the variant cannot run. Empty if it can."""
    is_twin: bool = False
    """Whether this is the dense model with as many active parameters as the configuration."""
    is_resized: bool = False
    """Whether the experts were resized to match the active parameters of the configuration."""

    @property
    def config(self) -> Config:
        """The configuration. The variant must not have a problem."""
        assert self.resolved is not None, self.problem
        return self.resolved

    @property
    def model(self) -> ModelConfig:
        """The configuration of the model. The variant must not have a problem."""
        return self.config.model

    @property
    def is_mixture(self) -> bool:
        """Whether any layer has experts."""
        return any(self.model.experts_per_layer)

    @property
    def tokens(self) -> int:
        """Number of tokens in a training step."""
        return self.config.train.batch_size * self.config.train.seq_len


def variants(
    config: Config, over: Sequence[str], twin: bool = False, iso_active: bool = False
) -> list[Variant]:
    """Return the configuration itself, and then every combination of the values in `over`.

    over: fields and their values, each as `section.key=V1,V2`. twin: whether to add the dense twin
    of the configuration as the last variant. iso_active: whether to resize the experts of all
    other variants to match the active parameters of the configuration itself.

    A combination that breaks a rule of the configuration becomes a variant with a problem. Raises
    ConfigError for a field that does not exist or may not vary, and for a value of the wrong type.
    """
    if config.train.phases:
        raise ConfigError("train.phases: ablations compare runs without phases; leave them out")
    if not over and not twin:
        raise ConfigError("nothing to compare: give --over section.key=V1,V2, or --twin")
    fields = [_flags(config, text) for text in over]
    paths = [flags[0].partition("=")[0] for flags in fields]
    if repeated := {path for path in paths if paths.count(path) > 1}:
        name = min(repeated).removeprefix("--")
        raise ConfigError(f"--over {name}: repeated; list all its values in one --over")
    keys = [path.rpartition(".")[2] for path in paths]
    section = r"^--\w+\." if len(set(keys)) == len(keys) else "^--"
    compared = [Variant("as given", (), config)]
    for flags in product(*fields) if fields else ():
        variant = _changed(config, ", ".join(re.sub(section, "", flag) for flag in flags), flags)
        if variant.resolved == config:
            compared[0] = replace(compared[0], name=f"{variant.name} (as given)")
        elif variant.resolved is None or variant.resolved not in [v.resolved for v in compared]:
            compared.append(variant)
    if iso_active:
        target = active_parameters(config.model)
        compared[1:] = [
            variant if variant.problem else _resized(variant, target) for variant in compared[1:]
        ]
    return [*compared, _twin(config)] if twin else compared


def _flags(config: Config, text: str) -> list[str]:
    """Return one flag for each value of a field.

    Values that contain commas must be put in brackets: `num_experts=4,[2,4,4,8]`.
    """
    name, _, listed = text.partition("=")
    name = name.removeprefix("--").replace("-", "_")
    section, _, key = name.partition(".")
    if section not in SECTIONS:
        raise ConfigError(
            f"--over {text!r}: must be section.key=V1,V2, where section is one of "
            f"{', '.join(SECTIONS)}"
        )
    if f"{section}.{key}" in UNMEASURED:
        raise ConfigError(
            f"--over {section}.{key}: changes neither the speed nor the memory nor what a variant "
            "learns, so there is nothing to compare"
        )
    flags = []
    for value in re.split(r",(?![^\[]*\])", listed):
        if not value.strip():
            raise ConfigError(f"--over {text!r}: a value is missing; write section.key=V1,V2")
        in_brackets = value.startswith("[") and value.endswith("]") and "," in value
        flags.append(f"--{name}={value[1:-1] if in_brackets else value.strip()}")
        _check_type(config, section, key, parse_flags(flags[-1:])[section][key])
    return flags


def _check_type(config: Config, section: str, key: str, value: object) -> None:
    """Raise ConfigError if a value has the wrong type for its field.

    A wrong type is the user's mistake and ends the command. A value that only breaks a rule of the
    configuration becomes a variant that cannot run.
    """
    annotation = get_type_hints(type(getattr(config, section)))[key]
    check_fields(section, make_dataclass(section, [(key, annotation)])(value))


def _changed(config: Config, name: str, flags: tuple[str, ...]) -> Variant:
    """Return the variant with these flags, which has a problem if they break a rule."""
    try:
        return Variant(name, flags, override(config, parse_flags(list(flags))))
    except ConfigError as error:
        return Variant(name, flags, None, problem=str(error))


def _twin(config: Config) -> Variant:
    """Return the dense twin. Raises ConfigError if the configuration is dense itself."""
    if not any(config.model.experts_per_layer):
        raise ConfigError(
            f"model.num_experts={config.model.num_experts}: --twin needs a model with experts, "
            "and this one is dense already"
        )
    twin = dense_twin(config.model)
    flags = (
        "--model.num_experts=0",
        f"--model.base_expansion={twin.base_expansion}",
        "--model.residual_mix=add",
    )
    return Variant("dense twin", flags, replace(config, model=twin), is_twin=True)


def _resized(variant: Variant, target: int) -> Variant:
    """Return the variant with experts that bring its active parameters closest to `target`.

    Widths are multiples of 64, so the numbers are rarely exactly equal. If one width for all
    layers is not close enough, the last layers' experts are wider than the first layers'.
    """
    model = variant.model
    if not variant.is_mixture:
        return _impossible(variant, "there are no experts to resize; --twin adds the dense model")
    without = active_parameters(model, [0.0] * (model.num_layers + model.use_mtp))
    if without >= target:
        return _impossible(
            variant,
            f"nothing is left for experts: {without:,} active parameters without any, and "
            f"{target:,} are the target",
        )
    low, high = 0.0, 1.0
    while active_parameters(_scaled(model, high)) < target:
        low, high = high, 2 * high
    while high - low > 1e-5 * high:
        middle = (low + high) / 2
        if active_parameters(_scaled(model, middle)) < target:
            low = middle
        else:
            high = middle

    def gap(candidate: ModelConfig) -> int:
        return abs(active_parameters(candidate) - target)

    narrow, wide = _scaled(model, low), _scaled(model, high)
    resized = min(narrow, wide, key=gap)
    if gap(resized) > SAME_COMPUTE * target:
        resized = min([resized, *_stepped(narrow, wide)], key=gap)
    names = ("--model.moe_min_expansion", "--model.moe_max_expansion")
    others = (flag for flag in variant.flags if flag.partition("=")[0] not in names)
    widths = (f"{name}={getattr(resized, name.rpartition('.')[2])}" for name in names)
    flags = (*others, *widths)
    config = replace(variant.config, model=resized)
    return replace(variant, flags=flags, resolved=config, is_resized=True)


def _impossible(variant: Variant, reason: str) -> Variant:
    """Return a variant that cannot be resized, with the reason."""
    return replace(variant, resolved=None, problem=f"--iso-active: {reason}")


def _scaled(model: ModelConfig, factor: float) -> ModelConfig:
    """Return the model with both ends of its pyramid multiplied by `factor`.

    If all layers have experts of the same width, the expansion becomes that of the rounded width.
    """
    ends = [
        max(1e-6, round(factor * end, 6))
        for end in (model.moe_min_expansion, model.moe_max_expansion)
    ]
    if ends[0] == ends[1]:
        ends = [hidden_width(end, model.dim) / model.dim for end in ends]
    return replace(model, moe_min_expansion=ends[0], moe_max_expansion=ends[1])


def _stepped(narrow: ModelConfig, wide: ModelConfig) -> list[ModelConfig]:
    """Return the models whose first layers are as in `narrow` and whose last ones as in `wide`.

    There are none if the widths of one of them already differ from layer to layer, or if the two
    differ by more than one multiple of 64.
    """
    widths = sorted({*narrow.expert_widths, *wide.expert_widths})
    if len(widths) != 2 or widths[1] - widths[0] != WIDTH_MULTIPLE:
        return []
    # Widths grow linearly over the layers and are rounded. The line crosses the middle between the
    # two widths before the last `count` layers, and stays within reach of both.
    layers, slope = narrow.num_layers, WIDTH_MULTIPLE / narrow.num_layers
    middle = sum(widths) / 2
    models = []
    for count in range(1, layers):
        last = middle + slope * (count - 0.5)
        least, most = (round(end / narrow.dim, 6) for end in (last - slope * (layers - 1), last))
        models.append(replace(narrow, moe_min_expansion=least, moe_max_expansion=most))
    return models
