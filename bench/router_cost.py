"""What routers and statistics cost: training steps of one model, interleaved A B C A B C, medians and ratios.

    python bench/router_cost.py --train.batch_size 8      on a GPU; any flags on top of `standard`

The variants: softmax_topk, the switch router, and softmax_topk without the statistics that only monitoring needs.
"""

import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import torch

import moebius.model.moe
from moebius.config import Config
from moebius.model.backends import choose_backends
from moebius.model.router import Router, Routing, summing_to_one, who_chose
from moebius.model.statistics import LayerStats, layer_stats
from moebius.model.transformer import lookahead, seeded
from moebius.observe.ceiling import wait
from moebius.parallel.layout import lay_out
from moebius.settings import read_config
from moebius.train.log import step_metrics
from moebius.train.session import choose_device
from moebius.train.state import TrainState
from moebius.train.step import matmul_dtype, train_step

ROUNDS, STEPS, WARM_UP = 15, 6, 3


def main() -> None:
    config = read_config("standard", ["--model.moe_min_expansion=3.5", "--model.moe_max_expansion=3.5", *sys.argv[1:]])
    device = choose_device(config.train.device)
    switch = replace(config, model=replace(config.model, router_type="switch", router_top_k=1))
    variants = {"softmax_topk": config, "switch": switch, "softmax_topk, no statistics": config}
    states = {name: _state(variant, device) for name, variant in variants.items()}
    tokens_BL = torch.randint(
        config.model.vocab_size, (config.train.batch_size, config.train.seq_len + lookahead(config.model)), device=device
    )
    milliseconds: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(ROUNDS + 1):
        for name, variant in variants.items():
            with without_statistics() if "no statistics" in name else nullcontext():
                took = _step_time(states[name], tokens_BL, variant, WARM_UP if turn == 0 else STEPS, device)
            if turn:
                milliseconds[name].append(took)
    own = milliseconds["softmax_topk"]
    device_name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{device_name}, {config.train.batch_size} x {config.train.seq_len} tokens a step; {ROUNDS} rounds of {STEPS} steps")
    for name, times in milliseconds.items():
        ratios = sorted(a / b for a, b in zip(times, own, strict=True))
        spread = f"{statistics.median(ratios):.4f}  ({ratios[0]:.4f} to {ratios[-1]:.4f})"
        print(f"{name:<30} {statistics.median(times):8.2f} ms  {spread}")
    took, between = _metrics_time(states["softmax_topk"], tokens_BL, config), statistics.median(own) * config.train.log_every
    print(f"{'turning a step into metrics':<30} {took:8.2f} ms  {took / between:.4f} of the steps between")


def _state(config: Config, device: torch.device) -> TrainState:
    backends = choose_backends(config.parallel, device, matmul_dtype(config.train, device), document_masking=False)
    model = seeded(0, config.model, backends).to(device)
    lay_out(model, config.parallel, device)
    return TrainState.new(model, config)


def _step_time(state: TrainState, tokens_BL: torch.Tensor, config: Config, steps: int, device: torch.device) -> float:
    wait(device)
    start = time.perf_counter()
    for _ in range(steps):
        train_step(state, tokens_BL, None, config.train)
    wait(device)
    return (time.perf_counter() - start) / steps * 1e3


def _metrics_time(state: TrainState, tokens_BL: torch.Tensor, config: Config) -> float:
    times = []
    for _ in range(5):
        result = train_step(state, tokens_BL, None, config.train)
        wait(tokens_BL.device)
        start = time.perf_counter()
        step_metrics(config, state, result)
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


@contextmanager
def without_statistics() -> Iterator[None]:
    """Only what the losses need is computed; the rest is left at nothing."""
    moebius.model.moe.layer_stats = _losses_alone
    try:
        yield
    finally:
        moebius.model.moe.layer_stats = layer_stats


def _losses_alone(router: Router, routing: Routing, groups: int) -> LayerStats:
    chosen_PE = who_chose(routing.expert_TK, router.num_experts).unflatten(0, (groups, -1)).sum(dim=1).float()
    nothing = torch.zeros((), device=chosen_PE.device)
    return LayerStats(
        tokens_per_expert_E=chosen_PE[0],
        chosen_PE=chosen_PE,
        probability_PE=summing_to_one(routing.probs_TE).unflatten(0, (groups, -1)).sum(dim=1),
        squared_log_partition=routing.logits_TE.logsumexp(dim=-1).square().sum(),
        entropy=nothing,
        gate=nothing,
        unrouted=nothing,
        dropped=nothing,
        not_finite=nothing,
        tokens=torch.full_like(nothing, routing.logits_TE.shape[0]),
    )


if __name__ == "__main__":
    main()
