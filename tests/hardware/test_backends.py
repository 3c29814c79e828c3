"""Which backends are chosen on which device and why, and that their results agree."""

import itertools
from dataclasses import replace

import pytest
import torch

from moebius.config import Config, DataConfig, ModelConfig, ParallelConfig, TrainConfig
from moebius.config.attention import ATTENTION
from moebius.config.expert_backends import EXPERT_BACKENDS
from moebius.hardware.backends import backends_for, choose_backends, is_compiled, is_hopper
from moebius.model.attention import attend_expanded, attention_backend, dense_mask
from moebius.model.transformer import seeded
from moebius.moe.backends import expert_backend
from moebius.moe.experts import loop
from tests.model.tiny import random_tokens, tiny

CPU, GPU = torch.device("cpu"), torch.device("cuda")
DOCUMENTS = torch.tensor([[0, 0, 1]])


def check_reason(line: str, start: str, reason: str) -> None:
    """Assert that a reason is one line, that names the choice and says why."""
    assert line.startswith(f"{start} (") and line.endswith(")") and "\n" not in line
    assert reason in line


@pytest.mark.parametrize(
    ("asked", "device", "dtype", "expected", "reason"),
    [
        ("auto", "cpu", torch.float32, "loop", "CPU"),
        ("auto", "cpu", torch.bfloat16, "loop", "CPU"),
        ("loop", "cpu", torch.float32, "loop", "asked for"),
        ("grouped", "cpu", torch.float32, "grouped", "asked for"),
        ("grouped", "cuda", torch.bfloat16, "grouped", "asked for"),
        ("grouped", "cuda:1", torch.bfloat16, "grouped", "asked for"),
        ("loop", "cuda", torch.bfloat16, "loop", "asked for"),
        ("auto", "cuda", torch.float32, "loop", "needs bfloat16"),
        ("grouped", "cuda", torch.float32, "loop", "grouped was asked for"),
        ("triton", "cpu", torch.float32, "loop", "needs a GPU"),
        ("grouped, compiled", "cpu", torch.float32, "loop", "grouped was asked for"),
        ("grouped, compiled", "cpu", torch.bfloat16, "grouped", "asked for"),
    ],
)
def test_experts(asked, device, dtype, expected, reason):
    name, _, compiled = asked.partition(", ")
    parallel = ParallelConfig(expert_backend=name, compile="on" if compiled else "off")
    backends = choose_backends(parallel, device, dtype)
    assert backends.experts == expected
    assert backends.expert_record is EXPERT_BACKENDS[expected]
    check_reason(backends.reasons[0], f"expert backend: {expected}", reason)


@pytest.fixture
def gpu(monkeypatch):
    """Return a function that makes torch pretend to have a GPU of some compute capability."""

    def pretend(capability: tuple[int, int], has_triton: bool = True) -> None:
        monkeypatch.setattr("moebius.hardware.backends.HAS_TRITON", has_triton)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)

    return pretend


@pytest.mark.parametrize(
    ("asked", "dim", "has_triton", "capability", "expected", "reason"),
    [
        ("triton", 896, True, (9, 0), "triton", "asked for"),
        ("triton", 896, True, (8, 0), "grouped", "Hopper"),
        ("triton", 900, True, (9, 0), "grouped", "model.dim to be a multiple of 8, not 900"),
        ("triton", 896, False, (9, 0), "grouped", "not installed"),
        ("auto", 896, True, (9, 0), "triton", "times as fast"),
        ("auto", 896, True, (8, 0), "grouped", "no host synchronization"),
        ("auto", 900, True, (9, 0), "grouped", "no host synchronization"),
        ("auto", 896, False, (9, 0), "grouped", "no host synchronization"),
    ],
)
def test_triton_runs_or_its_obstacle_is_named(
    gpu, asked, dim, has_triton, capability, expected, reason
):
    gpu(capability, has_triton)
    parallel = ParallelConfig(expert_backend=asked)
    backends = choose_backends(parallel, "cuda", torch.bfloat16, dim=dim)
    assert backends.experts == expected
    assert backends.expert_record.is_fused == (expected == "triton")
    check_reason(backends.reasons[0], f"expert backend: {expected}", reason)


@pytest.mark.parametrize(
    ("device", "capability", "asked", "reason"),
    [
        ("cpu", None, "auto", "emulated, and slow: its products need a Hopper GPU"),
        ("cuda", (8, 0), "auto", "emulated, and slow: its products need a Hopper GPU"),
        ("cuda", (9, 0), "auto", "weight gradients in bfloat16"),
        ("cuda", (9, 0), "grouped", "grouped was asked for"),
    ],
)
def test_float8_leaves_the_experts_one_backend(gpu, device, capability, asked, reason):
    if capability:
        gpu(capability)
    parallel = ParallelConfig(expert_backend=asked)
    backends = choose_backends(parallel, device, torch.bfloat16, expert_dtype="float8")
    assert backends.experts == "float8"
    check_reason(backends.reasons[0], "expert backend: float8", reason)


@pytest.mark.parametrize(
    ("capability", "expected"), [((9, 0), True), ((8, 9), False), ((10, 0), False)]
)
def test_the_hopper_generation_has_major_compute_capability_9(gpu, capability, expected):
    gpu(capability)
    assert is_hopper(GPU) is expected
    assert not is_hopper(CPU)


@pytest.mark.parametrize(
    ("asked", "compiled", "device", "documents", "expected", "reason"),
    [
        ("auto", "auto", "cpu", True, "sdpa_expanded", "CPU"),
        ("sdpa", "auto", "cpu", False, "sdpa_expanded", "CPU"),
        ("flex", "auto", "cpu", True, "sdpa_expanded", "flex was asked for, but needs a GPU"),
        ("auto", "auto", "cuda", True, "flex", "skips the blocks"),
        ("auto", "off", "cuda", True, "sdpa_expanded", "no fused kernel"),
        ("auto", "auto", "cuda", False, "sdpa_native", "KV head"),
        ("auto", "off", "cuda", False, "sdpa_native", "KV head"),
        ("sdpa", "on", "cuda", True, "sdpa_expanded", "no fused kernel"),
        ("sdpa", "on", "cuda", False, "sdpa_native", "KV head"),
        ("flex", "off", "cuda:1", True, "flex", "asked for"),
    ],
)
def test_attention(asked, compiled, device, documents, expected, reason):
    parallel = ParallelConfig(attention_backend=asked, compile=compiled)
    backends = choose_backends(parallel, device, torch.bfloat16, documents)
    assert backends.attention == expected
    check_reason(backends.reasons[1], f"attention: {ATTENTION[expected].description}", reason)


def test_the_default_runs_on_a_cpu():
    backends = choose_backends()
    assert expert_backend(backends.experts) is loop
    assert attention_backend(backends.attention).attend is attend_expanded
    assert len(backends.reasons) == 2 and backends.loss_chunks == 1


def test_the_backends_of_a_configuration():
    config = Config(
        model=ModelConfig(vocab_size=53, dim=32, num_heads=2, num_kv_heads=1),
        data=DataConfig(document_masking=False),
        train=TrainConfig(dtype="bfloat16"),
        parallel=ParallelConfig(expert_backend="grouped", compile="on", loss_chunks=3),
    )
    backends = backends_for(config, CPU)
    expected = choose_backends(config.parallel, CPU, torch.bfloat16, False, 32)
    assert backends == expected
    assert (backends.experts, backends.loss_chunks) == ("grouped", 3)
    # The compiler cannot run grouped products in float32.
    config = replace(config, train=replace(config.train, dtype="float32"))
    assert backends_for(config, CPU).experts == "loop"


def test_masks():
    mask = attention_backend(choose_backends().attention).mask
    assert mask(None) is None  # plain causal attention, for which the kernels need no mask
    assert torch.equal(mask(DOCUMENTS), dense_mask(DOCUMENTS))


@pytest.mark.parametrize(
    ("asked", "device", "expected"),
    [
        ("auto", CPU, False),
        ("auto", GPU, True),
        ("on", CPU, True),
        ("on", GPU, True),
        ("off", CPU, False),
        ("off", GPU, False),
    ],
)
def test_compilation(asked, device, expected):
    assert is_compiled(ParallelConfig(compile=asked), device) is expected


def test_every_pair_computes_the_same():
    config = tiny(use_mtp=True, router_top_k=2)
    tokens_BL = random_tokens(config)
    results = []
    for experts, attention in itertools.product(
        ("loop", "grouped"), ("sdpa_native", "sdpa_expanded")
    ):
        backends = replace(choose_backends(), experts=experts, attention=attention)
        model = seeded(0, config, backends)
        loss = model.loss(tokens_BL, end_of_text=0).total
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        results.append([loss, *gradients])
    for result in results[1:]:
        for value, expected in zip(result, results[0], strict=True):
            torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)
