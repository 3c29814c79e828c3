"""`moebius doctor`: what this machine has, what runs on it, what would harm a run, and whether
training works."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch

from moebius.config import Config
from moebius.cost.units import byte_size
from moebius.doctor.machine import Machine, machine
from moebius.doctor.offers import Offer, offers
from moebius.doctor.pitfalls import pitfalls
from moebius.doctor.selftest import self_test
from moebius.doctor.trial import Check
from moebius.hardware.backends import is_compiled
from moebius.hardware.ceilings import Ceilings, ceilings
from moebius.hardware.devices import sheet_of
from moebius.hardware.precision import dtype_name, matmul_dtype
from moebius.hardware.threads import use_threads
from moebius.observe.terminal import table


@dataclass(frozen=True)
class Diagnosis:
    """Everything that `moebius doctor` learned about the machine."""

    machine: Machine
    backends: list[Offer]
    """Every backend, and whether it can be used."""
    compile: str
    """Whether blocks are compiled, and whether they could be, in words."""
    dtype: str
    """Dtype of matrix products."""
    ceilings: Ceilings
    """Measured rates of the device."""
    pitfalls: list[str]
    """One line for each thing that would harm a run, with what to do about it."""
    checks: list[Check]
    """Results of the self-test."""

    @property
    def failed(self) -> list[Check]:
        """The checks that failed."""
        return [check for check in self.checks if not check.passed]

    def verdict(self) -> str:
        """Return one line: that all is well, or which checks failed and what to do."""
        if self.failed:
            return "; ".join(f"{check.name} FAILED: {check.remedy}" for check in self.failed)
        count = len(self.checks)
        number = len(self.pitfalls)
        watch = f", except for what is listed under `watch out` ({number})" if number else ""
        return f"all is well: {count} of {count} checks passed{watch}"


def examine(config: Config, device: torch.device, say: Callable[[str], None]) -> Diagnosis:
    """Examine everything. `say` gets one line at a time, because this takes a minute or more."""
    use_threads(config.train.threads)
    dtype = matmul_dtype(config.train, device)
    this_machine, backends = machine(config), offers(config, device)
    compilation = _compilation(config, device, this_machine)
    limits = ceilings(device, dtype)
    gpu = this_machine.gpus[device.index or 0].name if device.type == "cuda" else ""
    warnings = pitfalls(this_machine, config, device, os.environ)
    rows = [
        *this_machine.rows(),
        *((offer.kind, f"{offer.name}, {offer.state}: {offer.reason}") for offer in backends),
        ("compile", compilation),
        ("ceilings", _ceilings(limits, dtype, gpu)),
        *(("watch out", warning) for warning in warnings),
    ]
    for line in table(rows):
        say(line)
    say("")
    checks = self_test(config, device, say)
    return Diagnosis(
        machine=this_machine,
        backends=backends,
        compile=compilation,
        dtype=dtype_name(dtype),
        ceilings=limits,
        pitfalls=warnings,
        checks=checks,
    )


def as_json(diagnosis: Diagnosis) -> str:
    """Return everything as JSON, in bytes, FLOP/s and seconds."""
    return json.dumps(asdict(diagnosis) | {"verdict": diagnosis.verdict()}, indent=1)


def _compilation(config: Config, device: torch.device, machine: Machine) -> str:
    """Return whether blocks are compiled, and whether they could be, in words."""
    state = "on" if is_compiled(config.parallel, device) else "off"
    setting = f"{state} (--parallel.compile {config.parallel.compile})"
    on_gpu = device.type == "cuda"
    if on_gpu and not machine.triton:
        return f"{setting}; impossible: triton is not installed"
    names = ("cc", "gcc", "clang") if on_gpu else ("c++", "g++", "clang++")
    configured = os.environ.get("CC" if on_gpu else "CXX", "")
    paths = (shutil.which(name) for name in (configured, *names) if name)
    compiler = next(filter(None, paths), None)
    if compiler is None:
        return f"{setting}; impossible: no {names[0]} is installed"
    return f"{setting}; possible with {compiler}"


def _ceilings(limits: Ceilings, dtype: torch.dtype, gpu: str) -> str:
    """Return the measured rates and, for a known GPU, those of its data sheet."""
    measured = (
        f"{limits.flops / 1e9:,.0f} GFLOP/s of {dtype_name(dtype)} products, "
        f"{byte_size(limits.bytes, 0)}/s of copies"
    )
    sheet = sheet_of(gpu)
    if sheet is None:
        return measured
    flops = (
        f"{sheet.flops / 1e9:,.0f} GFLOP/s ({limits.flops / sheet.flops:.0%}) and "
        if dtype == torch.bfloat16
        else ""
    )
    copies = f"{byte_size(sheet.bytes, 0)}/s ({limits.bytes / sheet.bytes:.0%})"
    return f"{measured}; the data sheet says {flops}{copies}"
