"""The backends that a configuration can name, and whether this machine can run them."""

from dataclasses import dataclass, replace
from typing import Any, get_args, get_type_hints

import torch

from moebius.config import Config, ParallelConfig
from moebius.hardware.backends import Backends, backends_for, is_hopper

FIELDS = {"experts": "expert_backend", "attention": "attention_backend"}
"""The field of ParallelConfig that names the backend of each kind."""
LABELS = {"experts": "expert backend: ", "attention": "attention: "}
"""How the line of `Backends.reasons` about each kind begins."""
FLOAT8 = "float8"
"""The expert backend that train.expert_dtype names instead of a field of ParallelConfig."""


@dataclass(frozen=True)
class Offer:
    """A backend, and whether it can be used."""

    kind: str
    """`experts` or `attention`."""
    name: str
    state: str
    """`used` by the configuration, `available` on request, or `unavailable`."""
    reason: str
    """Why it is used, which flag requests it, or what runs instead of it."""


def offers(config: Config, device: torch.device) -> list[Offer]:
    """Return every backend that a configuration can name, with its state on the device."""
    return [_offer(kind, name, config, device) for kind in FIELDS for name in _names(kind)]


def chosen(
    config: Config,
    device: torch.device,
    kind: str,
    name: str,
    document_masking: bool | None = None,
) -> Backends:
    """Return the backends that run if the configuration names this backend of this kind.

    The other kind stays as configured. Which attention backend runs also depends on document
    masking; None leaves it as configured.
    """
    if kind == "experts":
        expert_dtype = FLOAT8 if name == FLOAT8 else "auto"
        config = replace(config, train=replace(config.train, expert_dtype=expert_dtype))
    if name != FLOAT8:
        change: dict[str, Any] = {FIELDS[kind]: name}
        config = replace(config, parallel=replace(config.parallel, **change))
    if document_masking is not None:
        data = replace(config.data, document_masking=document_masking)
        config = replace(config, data=data)
    return backends_for(config, device)


def flag_for(kind: str, name: str) -> str:
    """Return the flags that request a backend."""
    return (
        f"--train.expert_dtype {name}" if name == FLOAT8 else f"--parallel.{FIELDS[kind]} {name}"
    )


def _offer(kind: str, name: str, config: Config, device: torch.device) -> Offer:
    used = backends_for(config, device)
    if _runs(used, kind, name):
        reason = _reason(used, kind).removeprefix(name).strip()
        return Offer(kind, name, "used", reason[1:-1] if reason.startswith("(") else reason)
    asked = chosen(config, device, kind, name)
    if _runs(asked, kind, name):
        emulated = ", emulated" if name == FLOAT8 and not is_hopper(device) else ""
        return Offer(kind, name, "available", flag_for(kind, name) + emulated)
    return Offer(kind, name, "unavailable", f"instead: {_reason(asked, kind)}")


def _runs(backends: Backends, kind: str, name: str) -> bool:
    """Return whether the backend of that name is among these.

    The name `sdpa` stands for two backends, sdpa_native and sdpa_expanded.
    """
    if kind == "experts":
        return backends.experts == name
    return backends.attention.partition("_")[0] == name


def _reason(backends: Backends, kind: str) -> str:
    """Return which backend of a kind runs, and why, in words."""
    label = LABELS[kind]
    return next(line for line in backends.reasons if line.startswith(label)).removeprefix(label)


def _names(kind: str) -> list[str]:
    """Return the names that users can write for a kind of backend, except `auto`."""
    names = [
        name for name in get_args(get_type_hints(ParallelConfig)[FIELDS[kind]]) if name != "auto"
    ]
    return [*names, FLOAT8] if kind == "experts" else names
