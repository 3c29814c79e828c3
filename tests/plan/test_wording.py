"""Plans as text and as JSON."""

import json

import pytest

from moebius.config.files import read_config
from moebius.parallel.layout import check_layout
from moebius.plan.recommend import Plan
from moebius.plan.wording import SHOWN, as_json, lines
from tests.plan.test_recommend import MANY_EXPERTS, long_sequence, plan_of


def text_of(plan: Plan) -> str:
    return "\n".join(lines(plan))


def test_one_gpu_says_why_and_nothing_about_a_network():
    text = text_of(plan_of("standard"))
    assert "because it fits: nothing has to be recomputed" in text
    assert "network" not in text and "GPU each" not in text
    assert "on          h100: 776.4TFLOP/s, 3.0TB/s, 85 GB each (measured)" in text


@pytest.mark.parametrize("gpus", [2, 8, 2048])
def test_many_gpus_on_paper(gpus):
    text = text_of(plan_of("standard", *MANY_EXPERTS, gpus=gpus, gpu="b200"))
    assert f"on          {gpus} x b200: " in text
    machines = "--nnodes 256 --rdzv-endpoint HOST:PORT --nproc-per-node 8"
    processes = f"--nproc-per-node {gpus}" if gpus <= 8 else machines
    assert f"start with `torchrun {processes} -m moebius train ... --par" in text
    assert "on paper until they are measured" in text
    assert "network     each GPU sends in a step: " in text
    assert "TFLOP/s" in text and "MFU" in text


@pytest.mark.parametrize(
    ("flags", "gpus"),
    [
        ((), 2),
        (MANY_EXPERTS, 8),
        (("--parallel.shard=4", "--parallel.expert=2"), 4),
        (("--train.batch_size=10", "--train.micro_batch_size=5"), 4),
        (("--train.seq_len=65536",), 8),
    ],
    ids=lambda value: "".join(value) if isinstance(value, tuple) else str(value),
)
def test_the_command_trains_as_planned(flags, gpus):
    result = plan_of("standard", *flags, gpus=gpus)
    _, _, command = text_of(result).partition(" -m moebius train ... ")
    words = command.partition("`")[0].split()
    settings = dict(flag.split("=") for flag in flags)
    settings |= zip(words[::2], words[1::2], strict=True)
    config = read_config("standard", [f"{name}={value}" for name, value in settings.items()])
    check_layout(config, gpus)
    layout = result.best.layout
    assert config.parallel.shard == (gpus if layout.is_sharded else 1)
    assert config.parallel.expert == layout.expert_parallel
    assert config.parallel.activation_checkpointing == layout.recomputing
    assert config.train.micro_batch_size == layout.sequences
    assert config.train.batch_size == gpus * layout.sequences * layout.passes


def test_the_alternatives_are_compared_with_the_best():
    result = plan_of("standard", *MANY_EXPERTS, gpus=8, imbalance=2.0)
    best, text = result.best, text_of(result)
    decided = {
        "with a copy of the weights on each GPU": lambda layout: not layout.is_sharded,
        "with sharded weights": lambda layout: layout.is_sharded,
        "with all experts on each GPU": lambda layout: layout.expert_parallel == 1,
        "with the experts spread over GPUs": lambda layout: layout.expert_parallel > 1,
    }
    for words, is_alternative in decided.items():
        rivals = [other for other in result.others if is_alternative(other.layout)]
        if is_alternative(best.layout) or not rivals:
            assert words + " a step" not in text
        else:
            factor = min(rival.seconds for rival in rivals) / best.seconds
            assert f"{words} a step would take {factor:.2f} times as long" in text
    assert "a step would take" in text


def test_what_does_not_fit_is_said():
    text = text_of(plan_of("dense", *long_sequence(131072)))
    assert "without recomputation it does not fit" in text


def test_an_enlarged_batch_is_said():
    enlarged = "(enlarged from 64 to give every GPU the same share)"
    text = text_of(plan_of("standard", gpus=48))
    assert f"96 x 2048 = 196,608 tokens {enlarged}; on each GPU" in text
    assert "enlarged" not in text_of(plan_of("standard", gpus=8))


def test_a_device_that_waits_for_its_host_is_said():
    waiting = "the GPU waits for the host"
    assert waiting in text_of(plan_of("standard", "--train.seq_len=128"))
    assert waiting not in text_of(plan_of("standard"))


def test_an_imbalance_that_costs_nothing_is_said():
    text = text_of(plan_of("standard", imbalance=3.0))
    assert "an imbalance of 3 costs nothing here, because every GPU has all experts" in text


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("standard", "hf: Qwen2MoeForCausalLM"),
        ("pr_moe", "to no stock architecture: router_type sigmoid with router_threshold 0.5"),
    ],
)
def test_what_the_model_can_be_exported_to_is_said(name, said):
    planned = plan_of(name)
    assert f"export      {said}" in text_of(planned)
    assert json.loads(as_json(planned))["export"].startswith(said)


def test_no_more_than_a_few_other_layouts_are_shown():
    result = plan_of("standard", *MANY_EXPERTS, gpus=64)
    shown = [line for line in lines(result) if line.startswith("  ") and " GB  " in line]
    assert len(shown) == SHOWN < len(result.others)


def test_json_adds_up():
    values = json.loads(as_json(plan_of("standard", *MANY_EXPERTS, gpus=64)))
    best = values["best"]
    assert sum(best["memory"].values()) == pytest.approx(best["peak_bytes"])
    seconds = sum(best["computing"].values()) + best["communicating"]
    assert seconds == pytest.approx(best["step_seconds"])
    assert best["layout"]["gpus"] == 64 and values["device"]["name"] == "h100"


def test_the_host_memory_of_a_checkpoint_is_that_of_what_each_gpu_stores():
    result = plan_of("standard", *MANY_EXPERTS, gpus=8)
    memory = result.best.memory
    assert result.best.host_bytes == memory.weights + memory.optimizer > 0
    assert f"host        {result.best.host_bytes / 1e9:.1f} GB for each GPU" in text_of(result)
    assert json.loads(as_json(result))["best"]["host_bytes"] == result.best.host_bytes
