"""What a run does in each of its phases: its plain configurations and mixtures."""

import dataclasses

from moebius.config.phases import weights_per_source
from moebius.config.tree import Config


def in_phase(config: Config, number: int) -> Config:
    """Return the plain configuration, without phases, of the steps of a phase (counted from 0).

    A configuration without phases is returned as it is. What belongs to the whole run is not in
    it: `TrainConfig.is_over` has its end, `moebius.train.schedule` its learning rate, and
    `mixture_in_phase` its mixture.
    """
    if not config.train.phases:
        return config
    phase, train = config.train.phases[number], config.train
    batch_size = phase.batch_size or train.batch_size
    micro = phase.micro_batch_size or train.micro_batch_size
    plain = dataclasses.replace(
        train,
        phases=(),
        batch_size=batch_size,
        micro_batch_size=micro if micro and batch_size % micro == 0 else 0,
        seq_len=phase.seq_len or train.seq_len,
    )
    return dataclasses.replace(config, train=plain)


def mixture_in_phase(config: Config, number: int) -> tuple[float, ...]:
    """Return the weight in a phase (counted from 0) of each source that is prepared.

    These are the sources to which data.weights gives more than 0.
    """
    own = weights_per_source(config.data)
    phases = config.train.phases
    weights = (phases[number].weights if phases else 0.0) or own
    if not isinstance(weights, tuple):
        weights = (weights,) * len(own)
    return tuple(weight for weight, base in zip(weights, own, strict=True) if base)


def all_phases(config: Config) -> list[Config]:
    """Return the plain configuration of each phase; the configuration itself without phases."""
    return [in_phase(config, number) for number in range(max(1, len(config.train.phases)))]


def largest_phase(config: Config) -> Config:
    """Return the plain configuration of the phase that needs the most memory and time.

    That is the one with the most tokens in a forward pass; of those, the one with the longest
    sequences, and then with the largest batch.
    """

    def size(plain: Config) -> tuple[int, int, int]:
        train = plain.train
        micro = train.batch_size // train.accumulation_steps
        return micro * train.seq_len, train.seq_len, train.batch_size

    return max(all_phases(config), key=size)
