"""The lines that a run begins with, as they are printed for three presets."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from moebius.config import Config
from moebius.config.observe import ObserveConfig, Rule
from moebius.config.presets import preset
from moebius.data.stream import Part
from moebius.hardware.backends import backends_for
from moebius.train import summary as module
from moebius.train.summary import summary

CPU = torch.device("cpu")

TINY = """\
parameters       3.1M total, 1.1M active per token
                 embedding 262.1k, attention 196.6k, router 6.1k, experts 2.4M, norms 1.2k, \
lm_head 262.1k
FLOPs per token  7.1M forward and backward: attention_projections 17%, attention_core 11%, \
router 1%, experts 50%, lm_head 22%
memory           about 0.2 GB: weights 0.01, optimizer 0.02, activations 0.14, logits 0.07
experts          softmax_topk top-3; number x width by layer: 12x128 (4 layers); no base MLP
balance          loss 0.1 over the micro-batch; alarms warn, but router_logits stop
rotary           48 of 64 dimensions in 2 of 2 query heads
data             the size of the corpus
schedule         400 steps of 8 x 256 = 2,048 tokens (1 micro-batch), adamw at 0.006, cosine
export           hf: Qwen2MoeForCausalLM
device           a CPU, float32
expert backend   a backend (its reason)
compile          off (a CPU: nothing gained)
"""

PR_MOE = """\
parameters       489.5M total, 170.8M to 444.3M (sigmoid: none to all experts) active per token
                 embedding 45.1M, attention 48.2M, base_mlp 74.3M, router 64.5k, \
experts 260.6M, norms 44.8k, mtp 16.2M, lm_head 45.1M
FLOPs per token  3.9G forward and backward: attention_projections 7%, attention_core 7%, \
base_mlp 11%, router 0%, experts 40%, mtp 28%, lm_head 7%
memory           about 83.9 GB: weights 1.96, optimizer 3.92, activations 31.91, casts 1.16, \
gradients 1.96, logits 42.96
experts          sigmoid above 0.5; number x width by layer: 3x1152 (4 layers), \
3x1216 (3 layers), 3x1280 (3 layers), 3x1344 (4 layers), 3x1408 (3 layers), 3x1472 (3 layers), \
3x1536 (3 layers), 3x1600; base MLP of width 1152
balance          loss 0.01 over the micro-batch; alarms warn, but router_logits stop
rotary           24 of 32 dimensions in 28 of 28 query heads
data             the size of the corpus
schedule         20,000 steps of 64 x 2048 = 131,072 tokens (8 micro-batches), \
adamw at 0.0006, cosine
export           to no stock architecture: router_type sigmoid with router_threshold 0.5: \
stock routers choose a fixed number of experts
micro-batches    each of the step's 8 is balanced on its own; nothing else depends on \
train.micro_batch_size
device           a CPU, bfloat16
expert backend   a backend (its reason)
compile          off (a CPU: nothing gained)
"""

DENSE = """\
parameters       340.7M total, 295.6M active per token
                 embedding 45.1M, attention 48.2M, base_mlp 202.3M, norms 43.9k, lm_head 45.1M
FLOPs per token  2.0G forward and backward: attention_projections 14%, attention_core 13%, \
base_mlp 60%, lm_head 13%
memory           about 36.5 GB: weights 1.36, optimizer 2.73, activations 20.48, casts 0.59, \
gradients 1.36, logits 9.98
experts          none; base MLP of width 3136
balance          nothing to balance
rotary           24 of 32 dimensions in 28 of 28 query heads
data             the size of the corpus
schedule         20,000 steps of 64 x 2048 = 131,072 tokens (8 micro-batches), \
adamw at 0.0006, cosine
export           hf: LlamaForCausalLM
device           a CPU, bfloat16
expert backend   a backend (its reason)
compile          off (a CPU: nothing gained)
"""


@pytest.fixture(autouse=True)
def same_device_everywhere(monkeypatch) -> None:
    """Remove the machine's own name, and who else uses it, from the lines."""
    monkeypatch.setattr(module, "describe", lambda device: "a CPU")
    monkeypatch.setattr(module, "crowding", lambda device: "")


def lines_of(config: Config) -> list[str]:
    """Return the summary of a run whose corpus and choices are made up."""
    corpus: Any = SimpleNamespace(
        summary=lambda: "the size of the corpus",
        notes=(),
        lossy="",
        tokenizer=SimpleNamespace(size=config.model.vocab_size),
        train=SimpleNamespace(parts=[Part(0, 10**12, 10**12)]),
    )
    choices = ["expert backend: a backend (its reason)", "compile: off (a CPU: nothing gained)"]
    return summary(config, corpus, CPU, backends_for(config, CPU), choices)


def line_of(config: Config, name: str) -> str:
    """Return the text of the first line of that name."""
    line = next(line for line in lines_of(config) if line.startswith(f"{name} "))
    return line.removeprefix(name).strip()


@pytest.mark.parametrize(("name", "text"), [("tiny", TINY), ("pr_moe", PR_MOE), ("dense", DENSE)])
def test_the_summary_of_a_preset(name, text):
    assert lines_of(preset(name)) == text.splitlines()


def test_others_on_the_processor_are_named(monkeypatch):
    monkeypatch.setattr(module, "crowding", lambda device: "others are using the processor")
    said = line_of(preset("tiny"), "processor")
    assert said == "others are using the processor; the run will be slow"


def test_every_means_of_balance_is_named():
    config = preset("tiny")
    model = replace(
        config.model,
        aux_loss_scope="global_batch",
        router_bias_rate=0.001,
        router_z_loss_coeff=0.002,
        router_jitter=0.01,
    )
    assert line_of(replace(config, model=model), "balance").startswith(
        "loss 0.1 over the global-batch, loss-free bias in steps of 0.001, z-loss 0.002, "
        "jitter 0.01; alarms warn"
    )
    without = replace(config.model, aux_loss_coeff=0.0)
    assert line_of(replace(config, model=without), "balance").startswith("none; alarms warn")


def test_alarms_that_act_or_are_off_are_named():
    rules = replace(
        ObserveConfig(),
        cv=Rule(threshold=0.3, action="raise_aux"),
        loss_spike=Rule(threshold=2.0, action="roll_back"),
        dead_expert=Rule(threshold=0.01, action="off"),
    )
    assert line_of(replace(preset("tiny"), observe=rules), "balance").endswith(
        "; alarms warn, but cv raise_aux, router_logits stop, loss_spike roll_back; "
        "off: dead_expert"
    )


def test_rotated_heads_are_counted_as_query_heads():
    config = preset("pr_moe")
    model = replace(config.model, rope_scope="heads", rope_fraction=0.6)
    assert line_of(replace(config, model=model), "rotary") == (
        "32 of 32 dimensions in 16 of 28 query heads"
    )


def phased() -> Config:
    """Return `tiny` in three phases. The last two have equally large forward passes."""
    phases: Any = (
        {"until": 100_000, "schedule": "linear"},
        {"until": 400_000, "batch_size": 32, "micro_batch_size": 16},
        {"until": 900_000, "seq_len": 512, "schedule": "cosine", "lr_fraction": 0.1},
    )
    config = preset("tiny")
    return replace(config, train=replace(config.train, phases=phases))


CELLS = ("tokens", "0-100,352", "100,352-", "403,456-")


def test_the_phases_are_a_table():
    lines = lines_of(phased())
    first = next(number for number, line in enumerate(lines) if line.startswith("phases "))
    expected = (
        "schedule 3 phases, 208 steps, 900,000 tokens, adamw at 0.006",
        "phases steps tokens batch learning rate mixture",
        "1 1-49 0-100,352 8 x 256 0 -> 0.006 linear 1",
        "2 50-86 100,352-403,456 32 x 256 in 2 0.006 1",
        "3 87-208 403,456-903,168 8 x 512 0.006 -> 0.0006 cosine 1",
    )
    assert tuple(" ".join(line.split()) for line in lines[first - 1 : first + 4]) == expected
    assert len({line.index(cell) for line, cell in zip(lines[first:], CELLS, strict=False)}) == 1


def test_the_memory_is_that_of_the_largest_phase():
    config = phased()
    plain = replace(config, train=replace(config.train, phases=(), steps=400, seq_len=512))
    assert line_of(config, "memory") == line_of(plain, "memory") + " (in the largest phase)"
