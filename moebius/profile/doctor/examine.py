"""`moebius doctor`: what this machine has, what will run on it and how fast, what would spoil it, and whether it all works."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch

from moebius.config import Config
from moebius.model.backends import is_compiled
from moebius.observe.terminal import table
from moebius.profile.ceilings import Ceilings, ceilings
from moebius.profile.devices import sheet_of
from moebius.profile.doctor.agreement import Offer, offers
from moebius.profile.doctor.machine import Machine, machine, pitfalls
from moebius.profile.doctor.selftest import Check, self_test
from moebius.train.step import matmul_dtype

Say = Callable[[str], None]


@dataclass(frozen=True)
class Diagnosis:
    """What was found. pitfalls: lines that say what to do."""

    machine: Machine
    backends: list[Offer]
    compile: str
    dtype: str
    ceilings: Ceilings
    pitfalls: list[str]
    checks: list[Check]

    @property
    def failed(self) -> list[Check]:
        return [check for check in self.checks if not check.passed]

    def verdict(self) -> str:
        """One line: that all is well, or what failed and what to do."""
        if not self.failed:
            watch = f", but for what stands under `watch out` ({len(self.pitfalls)})" if self.pitfalls else ""
            return f"all is well: {len(self.checks)} of {len(self.checks)} checks passed{watch}"
        return "; ".join(f"{check.name} FAILED: {check.remedy}" for check in self.failed)


def examine(config: Config, device: torch.device, say: Say) -> Diagnosis:
    """Look at everything, reporting line by line; about a minute."""
    dtype = matmul_dtype(config.train, device)
    found, offered = machine(config), offers(config, device)
    compilation = _compilation(config, device, found)
    limits = ceilings(device, dtype)
    name = found.gpus[device.index or 0].name if device.type == "cuda" else ""
    warnings = pitfalls(found, config, device, os.environ)
    for line in table(
        [
            *found.rows(),
            *((offer.kind, f"{offer.name}, {offer.state}: {offer.reason}") for offer in offered),
            ("compile", compilation),
            ("ceilings", _ceilings(limits, dtype, name)),
            *(("watch out", warning) for warning in warnings),
        ]
    ):
        say(line)
    say("")
    checks = self_test(config, device, say)
    return Diagnosis(found, offered, compilation, _name(dtype), limits, warnings, checks)


def as_json(diagnosis: Diagnosis) -> str:
    """All of it, in bytes, FLOP/s and seconds."""
    return json.dumps(asdict(diagnosis) | {"verdict": diagnosis.verdict()}, indent=1)


def _compilation(config: Config, device: torch.device, found: Machine) -> str:
    """Whether blocks will be compiled, and whether they could be."""
    will = f"{'on' if is_compiled(config.parallel, device) else 'off'} (--parallel.compile {config.parallel.compile})"
    names = ("cc", "gcc", "clang") if device.type == "cuda" else ("c++", "g++", "clang++")
    named = os.environ.get("CC" if device.type == "cuda" else "CXX", "")
    compiler = next(filter(None, (shutil.which(name) for name in (named, *names) if name)), None)
    if device.type == "cuda" and not found.triton:
        return f"{will}; impossible: triton is not installed"
    return f"{will}; " + (f"possible with {compiler}" if compiler else f"impossible: no {names[0]} is installed")


def _ceilings(limits: Ceilings, dtype: torch.dtype, gpu: str) -> str:
    measured = f"{limits.flops / 1e9:,.0f} GFLOP/s of {_name(dtype)} products, {limits.bytes / 1e9:,.0f} GB/s of copies"
    sheet = sheet_of(gpu)
    if sheet is None:
        return measured
    flops = f"{sheet.flops / 1e9:,.0f} GFLOP/s ({limits.flops / sheet.flops:.0%}) and " if dtype == torch.bfloat16 else ""
    return f"{measured}; the data sheet says {flops}{sheet.bytes / 1e9:,.0f} GB/s ({limits.bytes / sheet.bytes:.0%})"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
