"""Compiles every kernel of a layer for a Hopper GPU, without one: prints each kernel's largest shared memory, in bytes."""

from types import SimpleNamespace

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from moebius.kernels import experts, hopper, tune

HOPPER = GPUTarget("cuda", 90, 32)
SHARED = 227 * 1024
T, E, D, F = 33, 5, 136, 192


def main() -> None:
    used: dict[str, int] = {}

    def starts_nothing(source, metadata):
        used[metadata.name] = max(used.get(metadata.name, 0), metadata.shared)
        return lambda *args: None

    utilities = SimpleNamespace(
        get_device_properties=lambda device: {"max_shared_mem": SHARED}, load_binary=lambda *args: (0, 0, 0, 0, 1024)
    )
    driver.set_active(
        SimpleNamespace(  # pyright: ignore[reportArgumentType]
            utils=utilities, launcher_cls=starts_nothing, get_current_device=lambda: 0, get_current_stream=lambda device: 0,
            get_current_target=lambda: HOPPER,
        )
    )  # fmt: skip
    hopper._programs = lambda device: 132
    fused, *split = tune.CANDIDATES["down_backward"]
    for k, by_hand, candidate in ((1, True, fused), (2, False, split[0])):
        hopper.runs_on = lambda x, by_hand=by_hand: by_hand
        experts.with_best_tile = lambda kind, given, shape, run, candidate=candidate: run(
            candidate if kind == "down_backward" else tune.CANDIDATES[kind][0]
        )
        layer(k)
    for name, shared in used.items():
        print(name, shared)


def layer(k: int) -> None:
    def leaf(*shape: int) -> torch.Tensor:
        return torch.randn(*shape).bfloat16().requires_grad_()

    x_TD, weights = leaf(T, D), (leaf(E, D, F), leaf(E, D, F), leaf(E, F, D))
    gate_TK, expert_TK = torch.rand(T, k, requires_grad=True), torch.zeros(T, k, dtype=torch.int64)
    out_TD = experts.run_experts(x_TD, gate_TK, expert_TK, *weights, "swiglu", 0.0)
    torch.autograd.grad(out_TD, [x_TD, gate_TK, *weights], torch.ones_like(out_TD))


if __name__ == "__main__":
    main()
