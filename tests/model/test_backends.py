"""What is chosen where, that the reason is said, and that the choice changes nothing."""

import itertools
from dataclasses import replace

import pytest
import torch

from moebius.config import ParallelConfig
from moebius.model.attention import attend_expanded, attend_native, dense_mask
from moebius.model.backends import choose_backends, is_compiled
from moebius.model.experts import grouped, loop, triton
from moebius.model.transformer import seeded
from tests.model.tiny import random_tokens, tiny

CPU, GPU = torch.device("cpu"), torch.device("cuda")
DOCUMENTS = torch.tensor([[0, 0, 1]])


@pytest.mark.parametrize(
    ("asked", "device", "dtype", "expected", "reason"),
    [
        ("auto", "cpu", torch.float32, loop, "CPU"),
        ("auto", "cpu", torch.bfloat16, loop, "CPU"),
        ("loop", "cpu", torch.float32, loop, "asked for"),
        ("grouped", "cpu", torch.float32, grouped, "asked for"),
        ("grouped", "cuda", torch.bfloat16, grouped, "asked for"),
        ("grouped", "cuda:1", torch.bfloat16, grouped, "asked for"),
        ("loop", "cuda", torch.bfloat16, loop, "asked for"),
        ("auto", "cuda", torch.float32, loop, "wants bfloat16"),
        ("grouped", "cuda", torch.float32, loop, "grouped was asked for"),
        ("triton", "cpu", torch.float32, loop, "needs a GPU"),
        ("grouped, compiled", "cpu", torch.float32, loop, "grouped was asked for"),
        ("grouped, compiled", "cpu", torch.bfloat16, grouped, "asked for"),
    ],
)
def test_experts(asked, device, dtype, expected, reason):
    name, _, compiled = asked.partition(", ")
    parallel = ParallelConfig(expert_backend=name, compile="on" if compiled else "off")
    backends = choose_backends(parallel, device, dtype)
    assert backends.run_experts is expected
    line = backends.reasons[0]
    assert line.startswith(f"experts: {expected.__name__} (") and reason in line and "\n" not in line


@pytest.mark.parametrize(
    ("asked", "dim", "installed", "capability", "expected", "reason"),
    [
        ("triton", 896, True, (9, 0), triton, "asked for"),
        ("triton", 896, True, (8, 0), grouped, "Hopper"),
        ("triton", 900, True, (9, 0), grouped, "model.dim a multiple of 8, not 900"),
        ("triton", 896, False, (9, 0), grouped, "not installed"),
        ("auto", 896, True, (9, 0), triton, "times as fast"),
        ("auto", 896, True, (8, 0), grouped, "no host synchronisation"),
        ("auto", 900, True, (9, 0), grouped, "no host synchronisation"),
        ("auto", 896, False, (9, 0), grouped, "no host synchronisation"),
    ],
)
def test_triton_runs_or_its_obstacle_is_named(monkeypatch, asked, dim, installed, capability, expected, reason):
    monkeypatch.setattr("moebius.model.backends.find_spec", lambda name: name if installed else None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    backends = choose_backends(ParallelConfig(expert_backend=asked), "cuda", torch.bfloat16, dim=dim)
    assert backends.run_experts is expected and backends.has_own_kernels == (expected is triton)
    line = backends.reasons[0]
    assert line.startswith(f"experts: {expected.__name__} (") and reason in line and line.endswith(")") and "\n" not in line


@pytest.mark.parametrize(
    ("asked", "compiled", "device", "documents", "expected", "reason"),
    [
        ("auto", "auto", "cpu", True, "attend_expanded", "sdpa"),
        ("sdpa", "auto", "cpu", False, "attend_expanded", "sdpa"),
        ("flex", "auto", "cpu", True, "attend_expanded", "flex was asked for, but needs a GPU"),
        ("auto", "auto", "cuda", True, "attend_flex", "skips the blocks"),
        ("auto", "off", "cuda", True, "attend_expanded", "no fused kernel"),
        ("auto", "auto", "cuda", False, "attend_native", "native GQA"),
        ("auto", "off", "cuda", False, "attend_native", "native GQA"),
        ("sdpa", "on", "cuda", True, "attend_expanded", "no fused kernel"),
        ("sdpa", "on", "cuda", False, "attend_native", "native GQA"),
        ("flex", "off", "cuda:1", True, "attend_flex", "asked for"),
    ],
)
def test_attention(asked, compiled, device, documents, expected, reason):
    parallel = ParallelConfig(attention_backend=asked, compile=compiled)
    backends = choose_backends(parallel, device, torch.bfloat16, documents)
    assert getattr(backends.attend, "__name__", "") == expected
    line = backends.reasons[1]
    assert line.startswith("attention: ") and reason in line and "\n" not in line


def test_the_default_runs_on_a_cpu():
    backends = choose_backends()
    assert (backends.run_experts, backends.attend) == (loop, attend_expanded)
    assert len(backends.reasons) == 2


def test_masks():
    backends = choose_backends()
    assert backends.mask(None) is None  # plain causal, which the kernels know by themselves
    assert torch.equal(backends.mask(DOCUMENTS), dense_mask(DOCUMENTS))


@pytest.mark.parametrize(
    ("asked", "device", "expected"),
    [("auto", CPU, False), ("auto", GPU, True), ("on", CPU, True), ("on", GPU, True), ("off", CPU, False), ("off", GPU, False)],
)
def test_compilation(asked, device, expected):
    assert is_compiled(ParallelConfig(compile=asked), device) is expected


def test_every_pair_computes_the_same():
    config = tiny(use_mtp=True, router_top_k=2)
    tokens_BL = random_tokens(config)
    results = []
    for run_experts, attend in itertools.product((loop, grouped), (attend_native, attend_expanded)):
        model = seeded(0, config, replace(choose_backends(), run_experts=run_experts, attend=attend))
        loss = model.loss(tokens_BL, end_of_text=0).total
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        results.append([loss, *gradients])
    for other in results[1:]:
        for value, expected in zip(other, results[0], strict=True):
            torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)
