"""A minute's proof that this machine trains: backends, a small run, its resumption, its checkpoints, its data, its devices."""

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch

from moebius.config import Config
from moebius.errors import Interrupted
from moebius.profile.doctor.agreement import FLOAT8, attention_agrees, experts_agree, offers
from moebius.profile.doctor.collective import collective
from moebius.profile.doctor.small_run import SmallRun
from moebius.train.step import matmul_dtype

INSTEAD = {"experts": "--parallel.expert_backend loop", "attention": "--parallel.attention_backend sdpa"}
REPORT = "report it with this output"


@dataclass(frozen=True)
class Check:
    """What was tried, whether it went well, in figures; what to do if it did not."""

    name: str
    passed: bool
    figures: str
    seconds: float
    remedy: str

    def __str__(self) -> str:
        return f"{'ok' if self.passed else 'FAILED':<7} {self.name:<26}{self.figures}  ({self.seconds:.1f} s)"


class Trial(NamedTuple):
    """run: returns figures, raises anything if it did not go well."""

    name: str
    run: Callable[[], str]
    remedy: str


def self_test(config: Config, device: torch.device, say: Callable[[str], None]) -> list[Check]:
    """Each trial, reported as it ends. Everything is written to a temporary folder."""
    checks = []
    with TemporaryDirectory(prefix="moebius-doctor-") as folder, _strict():
        for trial in (*_agreements(config, device), *_training(SmallRun(config, device, Path(folder)))):
            checks.append(_carried_out(trial))
            say(str(checks[-1]))
    return checks


def _carried_out(trial: Trial) -> Check:
    begun = time.perf_counter()
    try:
        figures, passed = trial.run(), True
    except Interrupted:
        raise
    except Exception as error:  # whatever is wrong with a machine is a finding, and must not hide the others
        text = " ".join(str(error).split())[:300]
        figures, passed = text if type(error).__module__.startswith("moebius") else f"{type(error).__name__}: {text}", False
    return Check(trial.name, passed, figures, time.perf_counter() - begun, "" if passed else trial.remedy)


def _agreements(config: Config, device: torch.device) -> Iterator[Trial]:
    """Experts in float32 too; compiling attention for a type that will not be used would take long."""
    trained = matmul_dtype(config.train, device)
    for dtype in dict.fromkeys([torch.float32, trained]):
        typed = replace(config, train=replace(config.train, dtype=_name(dtype)))
        for offer in offers(typed, device):
            if offer.state == "unavailable" or (offer.kind == "attention" and dtype != trained):
                continue
            agree = experts_agree if offer.kind == "experts" else attention_agrees
            instead = "--train.expert_dtype auto" if offer.name == FLOAT8 else INSTEAD[offer.kind]
            yield Trial(
                f"{offer.name} {offer.kind}, {_name(dtype)}",
                partial(agree, offer.name, typed, device),
                "reinstall torch" if offer.name in instead else f"{instead}; torch, triton and driver may not fit together",
            )


def _training(small: SmallRun) -> Iterator[Trial]:
    yield Trial("training", small.learns, "--parallel.compile off; if that passes, the compiler is to blame: reinstall triton")
    yield Trial("resume, bit by bit", small.resumes, f"do not rely on checkpoints here; {REPORT}")
    yield Trial("a flipped bit is noticed", small.notices_damage, f"do not rely on checkpoints here; {REPORT}")
    yield Trial("order of the data", small.repeats_its_data, f"do not compare runs made here; {REPORT}")
    if small.device.type == "cuda" and torch.cuda.device_count() > 1:
        yield Trial("sum over the devices", partial(collective, small.folder), "use one GPU; NCCL_DEBUG=INFO says why")


@contextmanager
def _strict() -> Iterator[None]:
    """Kernels that repeat, where there are any, and NaN in memory that nobody has written: what reads it shows."""
    was, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.use_deterministic_algorithms(was, warn_only=warns)


def _name(dtype: torch.dtype) -> Any:
    return str(dtype).removeprefix("torch.")
