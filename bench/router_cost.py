"""Measure what routers and statistics cost in the training steps of one model.

    python bench/router_cost.py --train.batch_size 8      on a GPU; any flags on top of `standard`

The variants are softmax_topk, the switch router, softmax_topk without the statistics that only
monitoring needs, and softmax_topk by the readable reference of our kernels. They take turns,
A B C D A B C D; the medians and ratios over the rounds are printed.

    python bench/router_cost.py --layer               on a GPU; one layer by itself

prints the time of one layer's routing and statistics, forward and backward, by the kernels and by
the reference. It is the time on the device of a compiled norm, router, statistics and matrix
product, less that of the norm and the product alone, because the norm writes what the router
reads. Kernel by kernel, only the kernels' own times follow.
"""

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from unittest.mock import patch

import torch
from flags import layered

import moebius.moe.layer
import moebius.moe.router
import moebius.moe.statistics
from moebius.config import Config, ModelConfig
from moebius.config.files import read_config
from moebius.hardware.backends import choose_backends
from moebius.hardware.device import choose_device, describe, wait
from moebius.hardware.precision import matmul_dtype
from moebius.model.transformer import lookahead, seeded
from moebius.moe.router import Router, Routing
from moebius.moe.statistics import LayerStats, layer_stats, who_chose
from moebius.parallel.layout import lay_out
from moebius.train.state import TrainState
from moebius.train.step import train_step
from moebius.train.step_metrics import step_metrics

ROUNDS, STEPS, WARM_UP = 15, 6, 3
CALLS = 10  # of one layer
UNIFORM = ["--model.moe_min_expansion=3.5", "--model.moe_max_expansion=3.5"]
# Tokens, dimension, experts and experts per token.
LAYERS = ((32768, 896, 4, 1), (65536, 512, 32, 4), (65536, 512, 64, 4), (65536, 1024, 128, 8))


def main() -> None:
    if "--layer" in sys.argv:
        for shape in LAYERS:
            one_layer(*shape)
        return
    config = read_config("standard", layered(UNIFORM, sys.argv[1:]))
    device = choose_device(config.train.device)
    switch = replace(config, model=replace(config.model, router_type="switch", router_top_k=1))
    variants = {"softmax_topk": config, "switch": switch}
    variants |= {f"softmax_topk, {context}": config for context in CONTEXTS}
    states = {name: _state(variant, device) for name, variant in variants.items()}
    tokens_BL = torch.randint(
        config.model.vocab_size,
        (config.train.batch_size, config.train.seq_len + lookahead(config.model)),
        device=device,
    )
    milliseconds: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(ROUNDS + 1):
        steps = STEPS if turn else WARM_UP
        for name, variant in variants.items():
            with CONTEXTS.get(name.partition(", ")[2], nullcontext)():
                step_ms = _step_time(states[name], tokens_BL, variant, steps, device)
            if turn:
                milliseconds[name].append(step_ms)
    baseline = milliseconds["softmax_topk"]
    size = f"{config.train.batch_size} x {config.train.seq_len} tokens per step"
    print(f"{describe(device)}, {size}; {ROUNDS} rounds of {STEPS} steps")
    for name, times in milliseconds.items():
        ratios = sorted(a / b for a, b in zip(times, baseline, strict=True))
        spread = f"{statistics.median(ratios):.4f}  ({ratios[0]:.4f} to {ratios[-1]:.4f})"
        print(f"{name:<30} {statistics.median(times):8.2f} ms  {spread}")
    metrics_ms = _metrics_time(states["softmax_topk"], tokens_BL, config)
    share = metrics_ms / (statistics.median(baseline) * config.train.log_every)
    metrics = f"{'metrics of a logged step':<30} {metrics_ms:8.2f} ms"
    print(f"{metrics}  {share:.4f} of the time between two")


def _state(config: Config, device: torch.device) -> TrainState:
    backends = choose_backends(
        config.parallel, device, matmul_dtype(config.train, device), document_masking=False
    )
    model = seeded(0, config.model, backends).to(device)
    lay_out(model, config.parallel, device)
    return TrainState.new(model, config)


def _step_time(
    state: TrainState, tokens_BL: torch.Tensor, config: Config, steps: int, device: torch.device
) -> float:
    """Return the milliseconds of one step, from the time of several."""
    wait(device)
    start = time.perf_counter()
    for _ in range(steps):
        train_step(state, tokens_BL, None, config.train)
    wait(device)
    return (time.perf_counter() - start) / steps * 1e3


def _metrics_time(state: TrainState, tokens_BL: torch.Tensor, config: Config) -> float:
    """Return the milliseconds that turning a step's tensors into metrics takes."""
    times = []
    for _ in range(5):
        result = train_step(state, tokens_BL, None, config.train)
        wait(tokens_BL.device)
        start = time.perf_counter()
        step_metrics(config, state, result, tokens_per_second=1.0, matmul_ceiling=1.0, memory=0.0)
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


@contextmanager
def without_statistics() -> Iterator[None]:
    """Let layers compute only what the losses need; the other figures are zero."""
    moebius.moe.layer.layer_stats = _losses_alone
    try:
        yield
    finally:
        moebius.moe.layer.layer_stats = layer_stats


@contextmanager
def by_reference() -> Iterator[None]:
    """Route and count without our kernels."""
    with (
        patch.object(moebius.moe.router, "uses_kernels", lambda *_: False),
        patch.object(moebius.moe.statistics, "uses_kernels", lambda *_: False),
    ):
        yield


CONTEXTS = {"no statistics": without_statistics, "reference": by_reference}


def one_layer(tokens: int, dim: int, num_experts: int, k: int) -> None:
    """Print the time on the device of one layer's routing and statistics."""
    model = ModelConfig(
        dim=dim, num_heads=1, num_kv_heads=1, num_experts=num_experts, router_top_k=k
    )
    router, norm = Router(model, num_experts).cuda(), torch.nn.RMSNorm(dim).cuda()
    product = torch.nn.Linear(dim, dim, bias=False).cuda()
    torch.nn.init.normal_(router.weight_ED)
    x_TD = torch.randn(tokens, dim, device="cuda", requires_grad=True)

    def run(routes: bool) -> torch.Tensor:
        with torch.autocast("cuda", torch.bfloat16):
            y_TD = norm(x_TD)
            loss = product(y_TD).sum(dtype=torch.float32)
            if routes:
                routing = router(y_TD)
                stats = layer_stats(router, routing, 1)
                loss = loss + routing.gate_TK.square().sum() + stats.squared_log_partition
                loss = loss + (stats.probability_PE * stats.chosen_PE).sum() + 0 * stats.entropy
        return loss

    print(f"\n{tokens:,} tokens of {dim}, {num_experts} experts, top-{k}")
    alone = _kernels(lambda: run(routes=False))
    for name, context in (("kernels", nullcontext), ("reference", by_reference)):
        with context():
            kernels = _kernels(lambda: run(routes=True))
        added = sum(kernels.values()) - sum(alone.values())
        print(f"{name:10} {added:8.4f} ms more than without a router")
        if name == "kernels":
            for kernel, milliseconds in kernels.items():
                if kernel.startswith("_"):
                    print(f"    {kernel:24} {milliseconds:8.4f}")


def _kernels(run: Callable[[], torch.Tensor]) -> dict[str, float]:
    """Return the milliseconds of each kernel in a compiled forward and backward pass."""
    torch._dynamo.reset()
    compiled = torch.compile(run)
    for _ in range(3):
        compiled().backward()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(CALLS):
            compiled().backward()
        torch.cuda.synchronize()
    return {
        event.key: event.self_device_time_total / CALLS / 1e3
        for event in profile.key_averages()
        if event.self_device_time_total
    }


def _losses_alone(router: Router, routing: Routing, groups: int) -> LayerStats:
    chosen_TE = who_chose(routing.expert_TK, router.num_experts)
    chosen_PE = chosen_TE.unflatten(0, (groups, -1)).sum(dim=1).float()
    nothing = torch.zeros((), device=chosen_PE.device)
    return LayerStats(
        tokens_per_expert_E=chosen_PE[0],
        chosen_PE=chosen_PE,
        probability_PE=router.distribution(routing).unflatten(0, (groups, -1)).sum(dim=1),
        squared_log_partition=routing.logits_TE.logsumexp(dim=-1).square().sum(),
        entropy=nothing,
        gate=nothing,
        unrouted=nothing,
        dropped=nothing,
        not_finite=nothing,
        vanished=nothing,
        tokens=torch.full_like(nothing, routing.logits_TE.shape[0]),
    )


if __name__ == "__main__":
    main()
