"""Plans: against what was measured, and against what must be true of any."""

import json
from dataclasses import replace

import pytest

from moebius.cli import main
from moebius.config import Config
from moebius.errors import ConfigError
from moebius.memory import Share
from moebius.profile.devices import DEVICES, device_named
from moebius.profile.plan.estimate import experts_per_token, step_seconds
from moebius.profile.plan.layouts import Layout, layouts, planned
from moebius.profile.plan.recommend import Plan, as_json, lines, plan
from moebius.settings import read_config
from tests.test_memory import HELD_OUT, RECOMPUTED

H100 = DEVICES["h100"]
MANY = ("--model.num_experts=64", "--train.batch_size=1024")

SIXTEEN = ["--train.batch_size=16", "--train.micro_batch_size=16"]
GROUPED = "--parallel.expert_backend=grouped"

# seconds of a step by `moebius profile` on an H100, text of 800 tokens a document; what is held out had no part in any fit
MEASURED: list[tuple[list[str], float]] = [
    (["standard", *SIXTEEN], 0.2008),
    (["standard", *SIXTEEN, GROUPED], 0.2265),
    (["dense", *SIXTEEN], 0.1851),
    (["pr_moe", *SIXTEEN], 0.2800),
    ([*HELD_OUT.split()], 0.2538),
    ([*HELD_OUT.split(), GROUPED], 0.2745),
    ([*RECOMPUTED.split(), "--train.micro_batch_size=8"], 0.1641),
    (["stability", "--train.batch_size=8", "--train.micro_batch_size=8"], 0.1933),
]


def plan_of(preset: str, *flags: str, gpus: int = 1, gpu: str = "h100", imbalance: float = 1.0) -> Plan:
    return plan(read_config(preset, list(flags)), device_named(gpu), gpus, imbalance)


@pytest.mark.parametrize(("arguments", "seconds"), MEASURED, ids=str)
def test_a_step_takes_what_was_measured(arguments, seconds):
    preset, *flags = arguments
    config = read_config(preset, flags)
    found = step_seconds(config, H100, Share.whole(config))
    assert sum(found.values()) == pytest.approx(seconds, rel=0.05)


def test_twice_the_tokens_take_no_more_than_twice_as_long():
    config = read_config("standard", [])
    one, two = (sum(step_seconds(config, H100, Share(sequences)).values()) for sequences in (8, 16))
    assert 1.5 * one < two < 2 * one


@pytest.mark.parametrize("imbalance", [1.0, 1.5])
def test_our_kernels_bring_the_results_of_one_expert_a_token_back_themselves(imbalance):
    one, two = (
        step_seconds(read_config("standard", [f"--model.router_top_k={k}"]), H100, Share(8, imbalance=imbalance))
        for k in (1, 2)
    )
    assert "combine" not in one and two["combine"] > 0


def test_a_slower_device_is_slower():
    times = {name: plan_of("dense", gpu=name).best.seconds for name in ("b200", "h200", "h100", "a100", "l40s")}
    assert list(times) == sorted(times, key=lambda name: times[name])


def test_a_sigmoid_routers_experts():
    assert experts_per_token(read_config("pr_moe", []).model)[0] == 1.5
    assert experts_per_token(read_config("pr_moe", []).model)[-1] == 3 * 1.5  # the MTP layer's passes
    assert experts_per_token(read_config("stability", []).model)[0] == read_config("stability", []).model.num_experts


def test_one_gpu_sends_nothing_and_computes_nothing_again_while_it_fits():
    best = plan_of("standard").best
    assert best.layout.recomputing == "none" and not best.sent and best.communicating == 0
    assert best.layout.sequences * best.layout.passes == 64
    assert best.fits and 0.3 < best.mfu < 0.5


def test_the_largest_pass_fits_and_one_more_would_not():
    found = plan_of("standard")
    most, more = (
        planned(found.config, H100, replace(found.best.layout, sequences=found.largest + extra)).fits for extra in (0, 1)
    )
    assert most and not more


def test_what_does_not_fit_otherwise_is_computed_again():
    found = plan_of("dense", "--train.seq_len=131072", "--train.batch_size=1", "--train.micro_batch_size=1")
    assert found.best.layout.recomputing != "none"
    assert all(each.layout.recomputing != "none" for each in found.others)
    assert any("without recomputation it does not fit" in line for line in lines(found))


def test_a_run_that_fits_nowhere_says_what_would_do():
    with pytest.raises(ConfigError, match=r"1 x rtx-4090: at least [\d.]+ GB are needed on each.*--gpus \d+ would do"):
        plan_of("standard", "--model.num_experts=64", gpu="rtx-4090")
    with pytest.raises(ConfigError, match="or a smaller model would do"):
        plan_of("dense", "--train.seq_len=4194304", "--train.batch_size=1", "--train.micro_batch_size=1", gpu="rtx-4090")


def test_replicas_send_gradients_and_shards_send_weights_too():
    config = read_config("standard", [])
    one, two = (planned(config, H100, Layout(8, 1, is_sharded, "none", 8, 1)) for is_sharded in (False, True))
    weights = plan_of("standard").best.memory.weights
    assert one.sent["adding up gradients"] == pytest.approx(2 * 7 / 8 * weights)
    assert two.sent["adding up gradients"] == pytest.approx(7 / 8 * weights)
    assert two.sent["gathering weights"] == pytest.approx(7 / 8 * weights)  # twice, in half the bytes
    assert two.memory.weights == pytest.approx(one.memory.weights / 8)
    assert two.memory.gathered > 0 == one.memory.gathered


def test_experts_on_other_devices_cost_tokens_on_the_way():
    config = read_config("standard", list(MANY))
    together, spread = (planned(config, H100, Layout(8, count, False, "none", 8, 1)) for count in (1, 8))
    tokens = 8 * 2048 * 896 * config.model.num_layers
    assert spread.sent["tokens to experts and back"] == pytest.approx(4 * 2 * 7 / 8 * tokens)
    assert spread.communicating > 0
    assert spread.memory.weights < 0.2 * together.memory.weights
    assert spread.sent["adding up gradients"] < together.sent["adding up gradients"]


def test_imbalance_costs_where_experts_are_spread():
    config = read_config("standard", list(MANY))
    layout = Layout(8, 8, True, "none", 8, 1)
    even, uneven, worse = (planned(config, H100, layout, factor) for factor in (1.0, 4.0, 16.0))
    assert even.seconds < uneven.seconds < worse.seconds
    assert even.memory.activations < uneven.memory.activations < worse.memory.activations
    alone = [planned(config, H100, Layout(1, 1, False, "none", 8, 1), factor).seconds for factor in (1.0, 16.0)]
    assert alone[0] == alone[1]


def test_layouts_divide_batch_and_experts():
    config = read_config("standard", ["--model.num_experts=6", "--train.batch_size=24", "--train.micro_batch_size=8"])
    found = list(layouts(config, 4))
    assert {each.sequences * each.passes for each in found} == {6}
    assert {each.expert_parallel for each in found} == {1, 2}
    assert {each.is_sharded for each in found} == {True, False}
    assert {each.expert_parallel for each in layouts(read_config("dense", []), 4)} == {1}


def test_a_batch_that_does_not_divide_grows_and_says_so():
    found = plan_of("standard", gpus=48)
    assert found.config.train.batch_size == 96
    assert any("96 x 2048" in line and "64 as configured does not divide" in line for line in lines(found))


@pytest.mark.parametrize("gpus", [2, 8, 2048])
def test_many_gpus_on_paper(gpus):
    found = plan_of("standard", *MANY, gpus=gpus, gpu="b200")
    text = "\n".join(lines(found))
    assert "this version of Moebius trains on one GPU" in text
    assert "TFLOP/s" in text and "MFU" in text
    assert found.best.fits and all(each.fits for each in found.others)
    assert found.best.seconds <= 1.02 * min(each.seconds for each in found.others)


def test_json_adds_up():
    values = json.loads(as_json(plan_of("standard", *MANY, gpus=64)))
    best = values["best"]
    assert sum(best["memory"].values()) == pytest.approx(best["peak_bytes"])
    assert sum(best["computing"].values()) + best["communicating"] == pytest.approx(best["step_seconds"])


def test_nothing_of_a_thousand_billion_parameters_is_allocated():
    flags = ("--model.num_experts=512", "--model.dim=7168", "--model.num_heads=56", "--model.num_kv_heads=8")
    found = plan_of("standard", *flags, "--train.batch_size=4096", gpus=4096, gpu="h200")
    assert sum(json.loads(as_json(found))["parameters"].values()) > 1e12


def run(*arguments: str) -> int | str | None:
    with pytest.raises(SystemExit) as stopped:
        main(["plan", *arguments])
    return stopped.value.code


def test_the_command(capsys):
    assert run("standard", "--gpus", "8", "--gpu", "h200", "--model.num_layers", "12") == 0
    assert "8 x h200" in capsys.readouterr().out
    assert run("--json") == 0
    assert json.loads(capsys.readouterr().out)["best"]["step_seconds"] > 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--gpu", "h10"], "did you mean h100?"),
        (["--gpus", "0"], "--gpus 0"),
        (["--imbalance", "0.5"], "--imbalance 0.5"),
        (["--imbalance", "nan"], "--imbalance nan"),
        (["--model.dims", "3"], "--model.dim"),
        (["nothing"], "tiny"),
    ],
)
def test_bad_input_is_one_line(arguments, says, capsys):
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and says in error


def test_a_config_is_left_alone():
    config = Config()
    plan(config, H100, 8)
    assert config == Config()
