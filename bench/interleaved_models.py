"""Time models that train in turns, each in its own process."""

import math
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import get_context
from threading import Condition
from typing import NamedTuple

import torch
from interleaved import OUT_OF_MEMORY, Timed, peak_of, reason, seconds_of

from moebius.config import Config
from moebius.cost.memory import memory
from moebius.cost.sizes import BFLOAT16
from moebius.hardware.backends import backends_for, is_compiled
from moebius.hardware.device import choose_device, total_memory
from moebius.hardware.precision import autocast, matmul_dtype
from moebius.profile.steps import Steps

MICRO_BATCHES = (16, 8, 4, 2, 1)
ROOM = 0.9
"""Share of a GPU's memory that all models together may use."""
CONTEXT = 0.7e9
"""Bytes that CUDA itself needs in each process."""


class TimedModel(NamedTuple):
    """The measured times of one model."""

    config: Config
    """The configuration, with the micro-batch that was used."""
    forward: Timed
    """Forward passes over the tokens of a step, which keep what backward would need."""
    step: Timed
    """Whole steps."""

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second of whole steps."""
        train = self.config.train
        return train.batch_size * train.seq_len / self.step.ms * 1e3


def models_in_turns(
    configs: Mapping[str, Config], rounds: int, jobs: int = 3
) -> dict[str, TimedModel]:
    """Return the times of each configuration's model, by name.

    All models use one micro-batch: the largest with which each model fits into the GPU's memory
    beside the weights and optimizers of the others. Up to `jobs` models are started at a time if
    they fit together, because compiling takes most of the time. A model that fails to start is
    started again alone, with half the micro-batch for as long as memory is what it lacks.
    """
    fitted = _fitted(configs)
    admission = _Admission(_room(configs))
    models = {name: _Model(config) for name, config in fitted.items()}

    def start(model: _Model) -> str:
        """Start the model once there is room for it. Return what went wrong, or ""."""
        with admission.of(_peak_bytes(model.config) - _idle_bytes(model.config)):
            return model.start()

    try:
        with ThreadPoolExecutor(jobs) as starters:
            errors = dict(zip(models, starters.map(start, models.values()), strict=True))
        for name in [name for name, error in errors.items() if error]:
            errors[name] = models[name].start()
            while errors[name] == OUT_OF_MEMORY and models[name].halve():
                errors[name] = models[name].start()
        turns = {name: [] for name, error in errors.items() if not error}
        for _ in range(rounds):
            for name in list(turns):
                turn = models[name].call(_turn)
                if isinstance(turn, str):
                    errors[name] = turn
                    del turns[name]
                else:
                    turns[name].append(turn)
    finally:
        for model in models.values():
            model.pool.shutdown()
    return {
        name: _timed(model.config, turns.get(name, []), errors[name])
        for name, model in models.items()
    }


def _timed(config: Config, turns: list[tuple[float, float, float]], error: str) -> TimedModel:
    if error:
        return TimedModel(config, Timed([], error=error), Timed([], error=error))
    forward, step, peak = zip(*turns, strict=True)
    return TimedModel(config, Timed([*forward], max(peak)), Timed([*step], max(peak)))


class _Model:
    """A model in its own process, so that it shares neither memory nor dynamo's caches."""

    def __init__(self, config: Config):
        self.config = config
        self.pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))

    def start(self) -> str:
        """Build, compile and warm up the model. Return what went wrong, or ""."""
        error = self.call(_start, self.config)
        if error:
            self.pool.shutdown()
            self.pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
        return error

    def halve(self) -> bool:
        """Halve the micro-batch, and return whether that was possible."""
        micro_batch = self.config.train.micro_batch_size // 2
        if micro_batch:
            self.config = _with_micro_batch(self.config, micro_batch)
        return micro_batch > 0

    def call(self, function: Callable, *arguments: object):
        """Return what the function returns in the model's process, or that the process died."""
        try:
            return self.pool.submit(function, *arguments).result()
        except BrokenProcessPool:
            return "its process died"


_running: list[Steps] = []
"""The model of this process; empty in the process that starts the others."""


def _start(config: Config) -> str:
    """Build the model of this process and run it once. Return what went wrong, or ""."""
    try:
        _running[:] = [Steps(config, choose_device(config.train.device))]
    except Exception as error:  # shown in the model's row, whatever it is
        return reason(error)
    turn = _turn()
    return turn if isinstance(turn, str) else ""


def _turn() -> tuple[float, float, float] | str:
    """Return the seconds of a forward pass and of a step, and the largest number of bytes in use.

    Return what went wrong instead, if something did. Afterwards the memory is free for the other
    processes.
    """
    (steps,) = _running
    try:
        steps.run(1)  # allocates the memory again
        forward = seconds_of(lambda: _forward(steps), 2, steps.device)
        peak = peak_of(lambda: steps.run(1), steps.device, beyond=False)
        return forward, steps.run(2), peak
    except Exception as error:
        return reason(error)
    finally:
        if steps.device.type == "cuda":
            torch.cuda.empty_cache()


def _forward(steps: Steps) -> None:
    """Run the forward passes of one step."""
    train = steps.config.train
    for micro_BL in steps.next_batch().chunk(train.accumulation_steps):
        with autocast(train, steps.device):
            steps.state.model.loss(micro_BL, steps.feed.separator)


class _Admission:
    """Admits work side by side as long as its memory fits; work that is too large runs alone."""

    def __init__(self, room: float):
        self.room = room
        """Bytes that are left."""
        self.working = 0
        """Number of pieces of work that are admitted now."""
        self.changed = Condition()

    @contextmanager
    def of(self, need: float) -> Iterator[None]:
        """Wait until `need` bytes are left or nothing else runs, and hold them in the context."""
        with self.changed:
            self.changed.wait_for(lambda: need <= self.room or not self.working)
            self._take(need, 1)
        try:
            yield
        finally:
            with self.changed:
                self._take(-need, -1)
                self.changed.notify_all()

    def _take(self, need: float, count: int) -> None:
        self.room -= need
        self.working += count


def _fitted(configs: Mapping[str, Config]) -> dict[str, Config]:
    """Return the configurations with the largest micro-batch that should fit for all of them."""
    sizes = [
        size
        for size in MICRO_BATCHES
        if all(config.train.batch_size % size == 0 for config in configs.values())
    ]
    for size in sizes:
        fitted = {name: _with_micro_batch(config, size) for name, config in configs.items()}
        needs = [_peak_bytes(config) - _idle_bytes(config) for config in fitted.values()]
        if size == sizes[-1] or max(needs) < _room(configs):
            return fitted
    raise AssertionError("1 divides every batch")


def _room(configs: Mapping[str, Config]) -> float:
    """Return the bytes of a GPU that are left beside what all models keep between their turns."""
    device = choose_device(next(iter(configs.values())).train.device)
    if device.type != "cuda":
        return math.inf
    return ROOM * total_memory(device) - sum(map(_idle_bytes, configs.values()))


def _peak_bytes(config: Config) -> float:
    """Return the bytes that the model's process should need during a step."""
    device = choose_device(config.train.device)
    item = matmul_dtype(config.train, device).itemsize
    compiled = is_compiled(config.parallel, device)
    experts = backends_for(config, device).experts
    return memory(config, item, compiled, experts=experts).peak + CONTEXT


def _with_micro_batch(config: Config, size: int) -> Config:
    return replace(config, train=replace(config.train, micro_batch_size=size))


def _idle_bytes(config: Config) -> float:
    """Return the bytes that the model's process keeps between its turns."""
    kept = memory(config, BFLOAT16, compiled=True)
    return kept.weights + kept.optimizer + CONTEXT
