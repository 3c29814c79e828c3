"""What a run does in each of its phases, and which one is the largest."""

from dataclasses import replace

from moebius.config import Config, DataConfig
from moebius.config.in_phases import all_phases, in_phase, largest_phase, mixture_in_phase
from tests.config.test_phases import PHASES, TWO_SOURCES, phased, read


def test_flags_give_what_phases_leave_open(tmp_path):
    flags = ("--train.lr", "1e-3", "--train.batch_size", "4", "--train.seq_len", "128")
    config = read(tmp_path, TWO_SOURCES + PHASES, *flags)
    first, second, third = (each.train for each in all_phases(config))
    assert (first.batch_size, first.seq_len) == (4, 128)
    assert (second.batch_size, second.micro_batch_size, second.seq_len) == (32, 4, 128)
    assert (third.batch_size, third.seq_len, third.lr) == (4, 512, 1e-3)
    assert not first.phases


def test_the_mixture_of_a_phase():
    data = DataConfig(source="a,b,c", weights=(1, 0, 3))
    phases = ({"until": 10}, {"until": 20, "weights": (5, 0, 0)}, {"until": 30, "weights": 2})
    config = Config(data=data, train=phased(*phases[:2]))
    assert [mixture_in_phase(config, n) for n in (0, 1)] == [(1, 3), (5, 0)]
    two = Config(data=replace(data, source="a,b", weights=1.0), train=phased(*phases[::2]))
    assert [mixture_in_phase(two, n) for n in (0, 1)] == [(1, 1), (2, 2)]
    assert mixture_in_phase(Config(data=data), 0) == (1, 3)


def test_the_largest_phase_is_that_with_the_most_tokens_in_a_forward_pass():
    train = phased({"until": 1000}, {"until": 2000, "seq_len": 16}, {"until": 3000})
    assert largest_phase(Config(train=train)).train.seq_len == 16
    train = phased({"until": 1000, "seq_len": 16, "micro_batch_size": 1}, {"until": 2000})
    assert largest_phase(Config(train=train)).train.seq_len == 8
    plain_config = Config()
    assert largest_phase(plain_config) is plain_config
    assert in_phase(plain_config, 0) is plain_config


def test_a_micro_batch_that_does_not_divide_the_phases_batch_is_the_whole_batch():
    train = phased({"until": 99, "batch_size": 3}, {"until": 999}, micro_batch_size=2)
    assert [each.train.accumulation_steps for each in all_phases(Config(train=train))] == [1, 2]
