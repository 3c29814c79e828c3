"""Measure what routers and statistics cost in the training steps of one model.

    python bench/router_cost.py --train.batch_size 8      on a GPU; any flags on top of `standard`

The variants are softmax_topk, the switch router, and softmax_topk without the statistics that only
monitoring needs. They take turns, A B C A B C; the medians and ratios over the rounds are printed.
"""

import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import torch
from flags import layered

import moebius.moe.layer
from moebius.config import Config
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
UNIFORM = ["--model.moe_min_expansion=3.5", "--model.moe_max_expansion=3.5"]


def main() -> None:
    config = read_config("standard", layered(UNIFORM, sys.argv[1:]))
    device = choose_device(config.train.device)
    switch = replace(config, model=replace(config.model, router_type="switch", router_top_k=1))
    variants = {"softmax_topk": config, "switch": switch, "softmax_topk, no statistics": config}
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
            with without_statistics() if "no statistics" in name else nullcontext():
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
