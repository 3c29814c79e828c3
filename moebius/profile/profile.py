"""`moebius profile`: compare what a step costs with what it should cost, by component."""

import torch

from moebius.config import Config
from moebius.config.in_phases import largest_phase
from moebius.cost.floor import components
from moebius.hardware.ceilings import ceilings
from moebius.hardware.device import describe
from moebius.hardware.precision import matmul_dtype
from moebius.profile.measure import measure
from moebius.profile.result import Profile, rows_of
from moebius.profile.steps import Steps


def profile(config: Config, device: torch.device, seconds: float = 15.0) -> tuple[Profile, Steps]:
    """Measure a configuration's step, and return its profile and the model that ran it.

    Of a run with phases, it is a step of the largest one. seconds: approximate duration of the
    measurement. Compilation takes additional time.
    """
    config = largest_phase(config)
    dtype = matmul_dtype(config.train, device)
    limits = ceilings(device, dtype)
    measured, steps = measure(config, device, seconds)
    expected = components(config, dtype.itemsize, measured.experts_per_token)
    result = Profile(
        config=config,
        device=describe(device),
        text=steps.text,
        notes=steps.notes,
        item=dtype.itemsize,
        has_row_for_every_choice=steps.backends.expert_record.has_static_rows,
        ceilings=limits,
        measured=measured,
        rows=rows_of(expected, measured, limits),
    )
    return result, steps
