"""The recommended layout: what must be true for every plan, and what is refused."""

import cProfile
from dataclasses import replace
from typing import Any

import pytest

from moebius.config import Config
from moebius.config.files import read_config
from moebius.cost.counts import parameters
from moebius.cost.layouts import planned
from moebius.errors import ConfigError
from moebius.hardware.devices import DEVICES, device_named
from moebius.plan.recommend import NEARLY_AS_FAST, Plan, plan

H100 = DEVICES["h100"]
MANY_EXPERTS = ("--model.num_experts=64", "--train.batch_size=1024")


def plan_of(
    preset: str, *flags: str, gpus: int = 1, gpu: str = "h100", imbalance: float = 1.0
) -> Plan:
    return plan(read_config(preset, list(flags)), device_named(gpu), gpus, imbalance)


def long_sequence(tokens: int) -> tuple[str, ...]:
    """Return the flags for a batch of a single sequence of that many tokens."""
    return (f"--train.seq_len={tokens}", "--train.batch_size=1", "--train.micro_batch_size=1")


def test_a_slower_device_is_slower():
    times = {
        name: plan_of("dense", gpu=name).best.seconds
        for name in ("b200", "h200", "h100", "a100", "l40s")
    }
    assert list(times) == sorted(times, key=lambda name: times[name])


def test_one_gpu_recomputes_nothing_while_it_fits():
    best = plan_of("standard").best
    assert best.layout.recomputing == "none" and not best.sent and best.communicating == 0
    assert best.layout.sequences * best.layout.passes == 64
    assert best.fits and 0.3 < best.mfu < 0.5


def test_the_largest_pass_fits_and_one_more_sequence_would_not():
    result = plan_of("standard")
    largest, larger = (
        replace(result.best.layout, sequences=result.largest_sequences + extra) for extra in (0, 1)
    )
    assert planned(result.config, H100, largest).fits
    assert not planned(result.config, H100, larger).fits


def test_what_does_not_fit_otherwise_is_recomputed():
    result = plan_of("dense", *long_sequence(131072))
    assert result.best.layout.recomputing != "none"
    assert all(other.layout.recomputing != "none" for other in result.others)


def test_a_run_that_fits_nowhere_says_what_would_help():
    needs = (
        r"1 x rtx-4090: at least [\d.]+ GB are needed on each GPU, but only 23\.7 GB can be used; "
    )
    with pytest.raises(ConfigError, match=needs + r"use --gpus \d+$"):
        plan_of("standard", "--model.num_experts=64", gpu="rtx-4090")
    with pytest.raises(ConfigError, match=needs + "use a shorter --train.seq_len or a smaller"):
        plan_of("dense", *long_sequence(4194304), gpu="rtx-4090")


def test_the_suggested_number_of_gpus_is_enough():
    flags = ("--model.num_experts=64",)
    with pytest.raises(ConfigError) as refused:
        plan_of("standard", *flags, gpu="rtx-4090")
    gpus = int(str(refused.value).rpartition(" ")[2])
    assert plan_of("standard", *flags, gpus=gpus, gpu="rtx-4090").best.fits
    with pytest.raises(ConfigError):
        plan_of("standard", *flags, gpus=gpus // 2, gpu="rtx-4090")


@pytest.mark.parametrize("gpus", [2, 8, 2048])
def test_the_best_layout_is_nearly_the_fastest_and_all_fit(gpus):
    result = plan_of("standard", *MANY_EXPERTS, gpus=gpus, gpu="b200")
    assert result.best.fits and all(other.fits for other in result.others)
    fastest = min(other.seconds for other in result.others)
    assert result.best.seconds <= NEARLY_AS_FAST * fastest
    kinds = [
        (each.layout.recomputing, each.layout.is_sharded, each.layout.expert_parallel)
        for each in (result.best, *result.others)
    ]
    assert len(set(kinds)) == len(kinds)


def test_a_batch_that_does_not_divide_is_enlarged():
    result = plan_of("standard", gpus=48)
    assert result.config.train.batch_size == 96 and result.asked_batch_size == 64


@pytest.mark.parametrize("gpus", [3, 5, 6, 7, 100])
def test_an_enlarged_batch_need_not_fit_the_configured_micro_batches(gpus):
    result = plan_of("standard", gpus=gpus)
    assert result.config.train.batch_size % gpus == 0 < result.best.tokens_per_second


def test_a_trillion_parameters_are_planned_in_no_time():
    flags = (
        "--model.num_experts=512",
        "--model.dim=7168",
        "--model.num_heads=56",
        "--model.num_kv_heads=8",
    )
    result = plan_of("standard", *flags, "--train.batch_size=4096", gpus=4096, gpu="h200")
    assert sum(parameters(result.config.model).values()) > 1e12


@pytest.mark.parametrize(
    ("gpus", "imbalance", "says"),
    [
        (0, 1.0, "--gpus 0: must be from 1 to 1000000"),
        (1, 0.5, "--imbalance 0.5: must be a number from 1 to 4;"),
        (1, 4.01, "--imbalance 4.01: must be a number from 1 to 4;"),
        (1, 20.0, "--imbalance 20: must be a number from 1 to 4;"),
        (1, float("nan"), "--imbalance nan"),
        (1, float("inf"), "--imbalance inf"),
    ],
)
def test_what_makes_no_sense_is_refused(gpus, imbalance, says):
    with pytest.raises(ConfigError, match=says):
        plan_of("tiny", gpus=gpus, imbalance=imbalance)


def test_the_given_config_is_left_alone():
    config = Config()
    plan(config, H100, 8)
    assert config == Config()


def calls_of_a_plan(num_layers: int) -> int:
    """Return the number of function calls of planning a batch of 25M tokens on 512 GPUs."""
    flags = (f"--model.num_layers={num_layers}", "--train.batch_size=12288", "--model.dim=4096")
    heads = ("--model.num_heads=32", "--model.num_kv_heads=8", "--train.micro_batch_size=0")
    config = read_config("standard", [*flags, *heads, "--model.num_experts=64"])
    profile = cProfile.Profile()
    profile.runcall(plan, config, H100, 512)
    return sum(entry.callcount for entry in profile.getstats())


def test_the_work_of_a_plan_is_linear_in_the_number_of_layers():
    few, many = calls_of_a_plan(24), calls_of_a_plan(96)
    assert many < 5 * few and many < 4_000_000  # it was 70 million


def test_a_run_in_phases_is_planned_for_the_largest():
    config = read_config("standard", [])
    phases: Any = ({"until": 10**9}, {"until": 2 * 10**9, "seq_len": 8192}, {"until": 3 * 10**9})
    phased = replace(config, train=replace(config.train, phases=phases))
    long = replace(config, train=replace(config.train, seq_len=8192))
    ours, theirs = plan(phased, H100, 8), plan(long, H100, 8)
    assert ours.config.train.seq_len == 8192
    assert (ours.best.layout, ours.best.seconds) == (theirs.best.layout, theirs.best.seconds)
