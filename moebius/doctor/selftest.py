"""A self-test that checks whether training works on this machine.

It covers the backends, a small run, its resumption, its checkpoints, its data and, if there are
several GPUs, a sum over them.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from moebius.config import Config
from moebius.doctor.agreement import attention_agrees, experts_agree
from moebius.doctor.collective import collective
from moebius.doctor.offers import FLOAT8, Offer, flag_for, offers
from moebius.doctor.small_run import SmallRun
from moebius.doctor.trial import Check, Trial, carried_out
from moebius.errors import Interrupted
from moebius.hardware.precision import dtype_name, matmul_dtype
from moebius.train.interruption import interruptible, signal_of

SAFE = {"experts": "loop", "attention": "sdpa"}
"""The backend of each kind that needs nothing but torch."""
REPORT = "report it with this output"


def self_test(config: Config, device: torch.device, say: Callable[[str], None]) -> list[Check]:
    """Carry out every trial, and return all results.

    `say` gets a line when a trial ends. All files are written into a temporary folder. Raises
    Interrupted, which names the trials that are incomplete, on a signal.
    """
    checks: list[Check] = []
    with (
        interruptible(),
        TemporaryDirectory(prefix="moebius-doctor-") as folder,
        _strict(),
    ):
        small_run = SmallRun(config, device, Path(folder))
        trials = [*_agreements(config, device), *_training(small_run)]
        try:
            for trial in trials:
                checks.append(carried_out(trial))
                say(str(checks[-1]))
        except KeyboardInterrupt as interrupt:
            incomplete = ", ".join(trial.name for trial in trials[len(checks) :])
            number = signal_of(interrupt)
            raise Interrupted(
                f"doctor was stopped by {number.name} after {len(checks)} of {len(trials)} "
                f"checks; incomplete: {incomplete}",
                number,
            ) from None
    return checks


def _agreements(config: Config, device: torch.device) -> Iterator[Trial]:
    """Yield a trial for every backend that can run, in the dtype of the run.

    Experts are also tried in float32. Attention is not, because compiling it for a dtype that the
    run does not use would take long.
    """
    trained = matmul_dtype(config.train, device)
    for dtype in dict.fromkeys([torch.float32, trained]):
        name: Any = dtype_name(dtype)
        typed = replace(config, train=replace(config.train, dtype=name))
        for offer in offers(typed, device):
            if offer.state == "unavailable" or (offer.kind == "attention" and dtype != trained):
                continue
            agree = experts_agree if offer.kind == "experts" else attention_agrees
            yield Trial(
                f"{offer.name} {offer.kind}, {name}",
                partial(agree, offer.name, typed, device),
                _remedy(offer),
            )


def _remedy(offer: Offer) -> str:
    """Return what to do if a backend gives wrong results."""
    if offer.name == SAFE[offer.kind]:
        return "reinstall torch"
    is_float8 = offer.name == FLOAT8
    instead = "--train.expert_dtype auto" if is_float8 else flag_for(offer.kind, SAFE[offer.kind])
    return f"{instead}; torch, triton and driver may not fit together"


def _training(small_run: SmallRun) -> Iterator[Trial]:
    """Yield the trials of training, in order: all but the last need the first one's run."""
    no_checkpoints = f"do not rely on checkpoints on this machine; {REPORT}"
    yield Trial(
        "training",
        small_run.learns,
        "--parallel.compile off; if that passes, the compiler is at fault: reinstall triton",
    )
    yield Trial("resume, bit by bit", small_run.resumes, no_checkpoints)
    yield Trial("a flipped bit is noticed", small_run.notices_damage, no_checkpoints)
    yield Trial(
        "order of the data",
        small_run.repeats_its_data,
        f"do not compare runs that were made on this machine; {REPORT}",
    )
    if small_run.device.type == "cuda" and torch.cuda.device_count() > 1:
        yield Trial(
            "sum over the devices",
            partial(collective, small_run.folder),
            "use one GPU; NCCL_DEBUG=INFO says why",
        )


@contextmanager
def _strict() -> Iterator[None]:
    """Make kernels deterministic where possible, and fill uninitialized memory with NaN.

    NaN exposes any code that reads memory before it was written.
    """
    was = torch.are_deterministic_algorithms_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.use_deterministic_algorithms(was, warn_only=warned)
