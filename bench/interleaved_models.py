"""Models that train, in turns, each in a process of its own."""

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
from moebius.memory import memory
from moebius.model.backends import is_compiled
from moebius.profile.measure import Steps
from moebius.train.session import backends_for, choose_device
from moebius.train.step import autocast, matmul_dtype

MICRO_BATCHES = (16, 8, 4, 2, 1)
ROOM = 0.9  # of a GPU's memory
CONTEXT = 0.7e9  # bytes of CUDA's own in each process


class TimedModel(NamedTuple):
    """For the tokens of a step: forward passes alone (as in training: what backward needs is kept), and whole steps."""

    config: Config
    forward: Timed
    step: Timed

    @property
    def tokens_per_second(self) -> float:
        train = self.config.train
        return train.batch_size * train.seq_len / self.step.ms * 1e3


def models_in_turns(configs: Mapping[str, Config], rounds: int, jobs: int = 3) -> dict[str, TimedModel]:
    """Each in a process of its own, all with the largest micro-batch with which every one fits beside the others' weights and
    optimizers.

    jobs: started at a time, if they fit together, because compiling takes most of the time. What does not start is started
    again alone, with half the micro-batch if it was memory that it wanted.
    """
    fitted = _fitted(configs)
    admission = _Admission(_room(configs))
    models = {name: _Model(config) for name, config in fitted.items()}

    def start(model: _Model) -> str:
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
    return {name: _timed(model.config, turns.get(name, []), errors[name]) for name, model in models.items()}


def _timed(config: Config, turns: list[tuple[float, float, float]], error: str) -> TimedModel:
    if error:
        return TimedModel(config, Timed([], error=error), Timed([], error=error))
    forward, step, peak = zip(*turns, strict=True)
    return TimedModel(config, Timed([*forward], max(peak)), Timed([*step], max(peak)))


class _Model:
    """A configuration in a process of its own: dynamo's caches, and memory, are not the others'."""

    def __init__(self, config: Config):
        self.config = config
        self.pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))

    def start(self) -> str:
        """Compile and warm up; what was wrong."""
        error = self.call(_start, self.config)
        if error:
            self.pool.shutdown()
            self.pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
        return error

    def halve(self) -> bool:
        """The micro-batch, if it can be."""
        micro_batch = self.config.train.micro_batch_size // 2
        if micro_batch:
            self.config = _with_micro_batch(self.config, micro_batch)
        return micro_batch > 0

    def call(self, function: Callable, *arguments: object):
        try:
            return self.pool.submit(function, *arguments).result()
        except BrokenProcessPool:
            return "its process died"


_running: list[Steps] = []  # one, in a model's process


def _start(config: Config) -> str:
    try:
        _running[:] = [Steps(config, choose_device(config.train.device))]
    except Exception as error:  # whatever is wrong with a contender is its row's to say
        return reason(error)
    turn = _turn()
    return turn if isinstance(turn, str) else ""


def _turn() -> tuple[float, float, float] | str:
    """Seconds of a forward pass and of a step, and bytes at most; then the memory is the others'."""
    (steps,) = _running
    try:
        steps.run(1)  # takes the memory back
        forward = seconds_of(lambda: _forward(steps), 2, steps.device)
        peak = peak_of(lambda: steps.run(1), steps.device, beyond=False)
        return forward, steps.run(2), peak
    except Exception as error:
        return reason(error)
    finally:
        if steps.device.type == "cuda":
            torch.cuda.empty_cache()


def _forward(steps: Steps) -> None:
    train = steps.config.train
    for micro_BL in steps.next_batch().chunk(train.accumulation_steps):
        with autocast(train, steps.device):
            steps.state.model.loss(micro_BL, steps.end_of_text)


class _Admission:
    """Work goes on side by side as long as it fits into a room together; what is too large for it, alone."""

    def __init__(self, room: float):
        self.room, self.working, self.changed = room, 0, Condition()

    @contextmanager
    def of(self, need: float) -> Iterator[None]:
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
    """All with one micro-batch, the largest that is expected to fit for each."""
    sizes = [size for size in MICRO_BATCHES if all(config.train.batch_size % size == 0 for config in configs.values())]
    for size in sizes:
        fitted = {name: _with_micro_batch(config, size) for name, config in configs.items()}
        if size == sizes[-1] or all(_peak_bytes(each) - _idle_bytes(each) < _room(configs) for each in fitted.values()):
            return fitted
    raise AssertionError("1 divides every batch")


def _room(configs: Mapping[str, Config]) -> float:
    """Bytes of a GPU beside what all contenders keep between their turns."""
    device = choose_device(next(iter(configs.values())).train.device)
    if device.type != "cuda":
        return math.inf
    return ROOM * torch.cuda.get_device_properties(device).total_memory - sum(map(_idle_bytes, configs.values()))


def _peak_bytes(config: Config) -> float:
    device = choose_device(config.train.device)
    item = matmul_dtype(config.train, device).itemsize
    own_kernels = backends_for(config, device).has_own_kernels
    return memory(config, item, is_compiled(config.parallel, device), own_kernels=own_kernels).peak + CONTEXT


def _with_micro_batch(config: Config, size: int) -> Config:
    return replace(config, train=replace(config.train, micro_batch_size=size))


def _idle_bytes(config: Config) -> float:
    kept = memory(config, item=2, compiled=True)
    return kept.weights + kept.optimizer + CONTEXT
