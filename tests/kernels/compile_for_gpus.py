"""Compile every kernel for a GPU, on a machine without one.

    python -m tests.kernels.compile_for_gpus 90     the compute capability, without its point

It prints the name of each kernel, and the most shared memory in bytes that any version of it uses.
For other GPUs than Hopper's, the kernels written by hand are left out.
"""

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from moebius.kernels import choice, experts, momentum, router, symmetric, tune
from moebius.kernels.hopper import down_backward, product, up, weight_gradient
from moebius.kernels.routing_sums import routing_sums

HOPPER = 90
SHARED = 227 * 1024  # bytes of shared memory that one program can use
# The kinds of product whose candidate tiles all fit.
ALL_FIT = (
    *("up", "down_backward", "swiglu", "swiglu_backward", "weights", "swiglu of slots"),
    *("swiglu_backward of slots", "swiglu_weights of slots"),
)
T, E, D, F = 33, 5, 136, 192


def main(capability: int) -> None:
    """Compile the layer with every candidate tile, with and without SwiGLU."""
    if capability != HOPPER:
        for kind, tiles in tune.CANDIDATES.items():
            tune.CANDIDATES[kind] = [tile for tile in tiles if tile.epilogue != "by hand"][:1]
    largest: dict[str, int] = {}

    def record_shared_memory(source, metadata):
        """Replace the launcher of a compiled kernel, and launch nothing."""
        largest[metadata.name] = max(largest.get(metadata.name, 0), metadata.shared)
        return lambda *args: None

    pretend_there_is_a_gpu(record_shared_memory, capability)
    for candidate in range(max(2, *(len(tune.CANDIDATES[kind]) for kind in ALL_FIT))):
        for activation in ("swiglu", "relu2"):
            layer(k=1 + candidate % 2, activation=activation, candidate=candidate)
    for candidate in range(len(tune.CANDIDATES["gram"])):
        optimizer(candidate)
    for k, is_sigmoid, capacity in ((0, True, -1), (1, False, 5), (2, False, -1), (2, True, -1)):
        routing(k, is_sigmoid, capacity)
    for name, shared in largest.items():
        print(name, shared)


def pretend_there_is_a_gpu(launcher: Callable[..., Any], capability: int) -> None:
    """Give Triton a driver that compiles for a GPU, with `launcher` in place of the real one."""
    utilities = SimpleNamespace(
        get_device_properties=lambda device: {"max_shared_mem": SHARED},
        load_binary=lambda *args: (0, 0, 0, 0, 1024),
    )
    driver.set_active(
        SimpleNamespace(  # pyright: ignore[reportArgumentType]
            utils=utilities,
            launcher_cls=launcher,
            get_current_device=lambda: 0,
            get_current_stream=lambda device: 0,
            get_current_target=lambda: GPUTarget("cuda", capability, 32),
        )
    )
    up.multiprocessors = down_backward.multiprocessors = lambda device: 132
    product.multiprocessors = weight_gradient.multiprocessors = lambda device: 132


def layer(k: int, activation: str, candidate: int) -> None:
    """Compile the forward and backward pass of a layer whose tokens have `k` slots.

    The kinds of product in ALL_FIT use the candidate tile of that number. The other kinds use
    their first candidate, because the others may not fit.
    """

    def with_candidate(kind: str, rows: torch.Tensor, shape: tuple, run: Callable) -> Any:
        tiles = tune.CANDIDATES[kind]
        return run(tiles[candidate % len(tiles) if kind in ALL_FIT else 0])

    experts.with_best_tile = with_candidate

    def leaf(*shape: int) -> torch.Tensor:
        return torch.randn(*shape).bfloat16().requires_grad_()

    x_TD, w_up_EDF, w_down_EFD = leaf(T, D), leaf(E, D, F), leaf(E, F, D)
    w_gate_EDF = leaf(E, D, F) if activation == "swiglu" else None
    gate_TK, expert_TK = torch.rand(T, k, requires_grad=True), torch.zeros(T, k, dtype=torch.int64)
    out_TD = experts.run_experts(
        x_TD, gate_TK, expert_TK, w_gate_EDF, w_up_EDF, w_down_EFD, activation, 0.0
    )
    torch.autograd.grad(out_TD, [x_TD, gate_TK, w_up_EDF, w_down_EFD], torch.ones_like(out_TD))


def optimizer(candidate: int) -> None:
    """Compile the passes and products of Muon's step."""

    def with_candidate(kind: str, rows: torch.Tensor, shape: tuple, run: Callable) -> Any:
        return run(tune.CANDIDATES[kind][candidate])

    symmetric.with_best_tile = with_candidate
    weight_EDF = torch.randn(E, D, F)
    scalar = torch.ones(())
    for shape in ((E, D, F), (E, F, D)):
        direction = torch.empty(shape, dtype=torch.bfloat16)
        momentum.advance(weight_EDF, weight_EDF, direction, 0.95, scalar)
        momentum.subtract(weight_EDF, direction, scalar, scalar)
    for scales in (None, torch.ones(E)):
        symmetric.polynomial(symmetric.gram(direction), (1.0, 2.0, 3.0), scales)


def routing(k: int, is_sigmoid: bool, capacity: int) -> None:
    """Compile the router and the statistics, forward and backward."""
    x_TD, bias_E = torch.randn(T, D), torch.zeros(E)
    for num_experts in (router.FEW_EXPERTS + 1, E):
        weight_ED = torch.randn(num_experts, D, requires_grad=True)
        for dtype in (torch.float32, torch.bfloat16):
            kept_TD = x_TD.to(dtype).requires_grad_()
            logits_TE = router.logits(x_TD, weight_ED, kept_TD)
            torch.autograd.grad(logits_TE, [kept_TD, weight_ED], torch.ones_like(logits_TE))
    logits_TE = logits_TE.detach().requires_grad_()
    rule = choice.Rule(k, is_sigmoid, k > 1, 1.0, 0.5, capacity)
    gate_TK, expert_TK = choice.choose(logits_TE, bias_E, rule)
    sums = routing_sums(logits_TE, gate_TK, expert_TK, bias_E, 1, is_sigmoid, capacity >= 0, 1e-7)
    torch.autograd.grad(gate_TK.sum() + sums[0].sum() + sums[1], logits_TE)


if __name__ == "__main__":
    main(int(sys.argv[1]))
