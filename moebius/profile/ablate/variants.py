"""The variants of a configuration: fields varied, experts resized to the same active parameters, the dense twin. No torch."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, make_dataclass, replace
from itertools import product
from typing import get_type_hints

from moebius.config import Config, ModelConfig, hidden_width
from moebius.cost import active_parameters
from moebius.errors import ConfigError
from moebius.fields import check_fields
from moebius.presets import dense_twin
from moebius.settings import override, parse_flags

SECTIONS = ("model", "data", "train", "parallel")


@dataclass(frozen=True)
class Variant:
    """flags: what was changed, to be pasted. made: the configuration; None where `problem` says why there is none."""

    name: str
    flags: tuple[str, ...]
    made: Config | None
    problem: str = ""
    is_twin: bool = False
    is_resized: bool = False

    @property
    def config(self) -> Config:
        assert self.made is not None, self.problem
        return self.made

    @property
    def model(self) -> ModelConfig:
        return self.config.model

    @property
    def is_mixture(self) -> bool:
        return any(self.model.experts_per_layer)

    @property
    def tokens(self) -> int:
        """Of a step."""
        return self.config.train.batch_size * self.config.train.seq_len


def variants(config: Config, over: Sequence[str], twin: bool = False, iso_active: bool = False) -> list[Variant]:
    """The configuration as given, first, and every combination of the values in `over` (`section.key=V1,V2`).

    iso_active: the experts of all the others are as wide as gives the first one's active parameters. twin: the first one's
    dense twin is the last. A combination that breaks a rule of the configuration is a variant with a problem. Raises
    ConfigError for a field that is not there or may not vary and for a value of another type.
    """
    if not over and not twin:
        raise ConfigError("nothing to compare: give --over section.key=V1,V2, or --twin")
    fields = [_flags(config, text) for text in over]
    paths = [each[0].partition("=")[0] for each in fields]
    if repeated := {path for path in paths if paths.count(path) > 1}:
        raise ConfigError(f"--over {min(repeated).removeprefix('--')}: given twice; list all values in one")
    keys = [path.rpartition(".")[2] for path in paths]
    is_clear = len(set(keys)) == len(keys)
    found = [Variant("as given", (), config)]
    for flags in product(*fields) if fields else ():
        name = ", ".join(re.sub(r"^--\w+\." if is_clear else "^--", "", flag) for flag in flags)
        variant = _changed(config, name, flags)
        if variant.made == config:
            found[0] = replace(found[0], name=f"{name} (as given)")
        elif variant.made is None or all(variant.made != each.made for each in found):
            found.append(variant)
    if iso_active:
        target = active_parameters(config.model)
        found[1:] = [each if each.problem else _resized(each, target) for each in found[1:]]
    return [*found, _twin(config)] if twin else found


def _flags(config: Config, text: str) -> list[str]:
    """One flag for each value. A value that holds commas itself stands in brackets: `num_experts=4,[2,4,4,8]`."""
    name, _, listed = text.partition("=")
    name = name.removeprefix("--").replace("-", "_")
    section, _, key = name.partition(".")
    if section not in SECTIONS:
        raise ConfigError(f"--over {text!r}: section.key=V1,V2 is wanted, of {', '.join(SECTIONS)}")
    flags = []
    for value in re.split(r",(?![^\[]*\])", listed):
        if not value.strip():
            raise ConfigError(f"--over {text!r}: a value is missing; section.key=V1,V2 is wanted")
        in_brackets = value.startswith("[") and value.endswith("]") and "," in value
        flags.append(f"--{name}={value[1:-1] if in_brackets else value.strip()}")
        _check_type(config, section, key, parse_flags(flags[-1:])[section][key])
    return flags


def _check_type(config: Config, section: str, key: str, value: object) -> None:
    """A value of the wrong type is an error of whoever typed it; one that only breaks a rule is a variant that cannot run."""
    annotation = get_type_hints(type(getattr(config, section)))[key]
    check_fields(section, make_dataclass(section, [(key, annotation)])(value))


def _changed(config: Config, name: str, flags: tuple[str, ...]) -> Variant:
    try:
        return Variant(name, flags, override(config, parse_flags(list(flags))))
    except ConfigError as error:
        return Variant(name, flags, None, problem=str(error))


def _twin(config: Config) -> Variant:
    if not any(config.model.experts_per_layer):
        raise ConfigError(f"model.num_experts={config.model.num_experts}: --twin is for a mixture, this is dense already")
    twin = dense_twin(config.model)
    flags = ("--model.num_experts=0", f"--model.base_expansion={twin.base_expansion}", "--model.residual_mix=add")
    return Variant("dense twin", flags, replace(config, model=twin), is_twin=True)


def _resized(variant: Variant, target: int) -> Variant:
    """The variant with experts as wide as brings its active parameters nearest to `target`; widths are multiples of 64."""
    model = variant.model
    if not variant.is_mixture:
        return replace(variant, made=None, problem="--iso-active: no experts to resize; --twin is the dense one")
    without = active_parameters(model, [0.0] * (model.num_layers + model.use_mtp))
    if without >= target:
        return replace(
            variant,
            made=None,
            problem=f"--iso-active: nothing left for experts, {without:,} active parameters without any, {target:,} are wanted",
        )
    low, high = 0.0, 1.0
    while active_parameters(_scaled(model, high)) < target:
        low, high = high, 2 * high
    while high - low > 1e-5 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if active_parameters(_scaled(model, middle)) < target else (low, middle)
    resized = min((_scaled(model, low), _scaled(model, high)), key=lambda each: abs(active_parameters(each) - target))
    names = ("moe_min_expansion", "moe_max_expansion")
    flags = (*variant.flags, *(f"--model.{name}={getattr(resized, name)}" for name in names))
    return replace(variant, flags=flags, made=replace(variant.config, model=resized), is_resized=True)


def _scaled(model: ModelConfig, factor: float) -> ModelConfig:
    """Both ends of the pyramid times `factor`; of one width for all layers, the width that comes of it."""
    ends = [max(1e-6, round(factor * end, 6)) for end in (model.moe_min_expansion, model.moe_max_expansion)]
    if ends[0] == ends[1]:
        ends = [hidden_width(end, model.dim) / model.dim for end in ends]
    return replace(model, moe_min_expansion=ends[0], moe_max_expansion=ends[1])
