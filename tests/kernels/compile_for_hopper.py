"""Compiles every kernel of a layer for a Hopper GPU, without one: prints each kernel's largest shared memory, in bytes."""

from types import SimpleNamespace

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from moebius.kernels import experts, tune
from moebius.kernels.hopper import down_backward, up

HOPPER = GPUTarget("cuda", 90, 32)
SHARED = 227 * 1024
ALL_FIT = ("up", "down_backward", "swiglu", "swiglu_backward", "weights")
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
    up.multiprocessors = down_backward.multiprocessors = lambda device: 132
    for which in range(max(len(tune.CANDIDATES[kind]) for kind in ALL_FIT)):
        for activation in ("swiglu", "relu2"):
            layer(k=1 + which % 2, activation=activation, which=which)
    for name, shared in used.items():
        print(name, shared)


def layer(k: int, activation: str, which: int) -> None:
    """With that candidate of the kinds all of whose candidates fit, and the first of the others, which need not."""
    experts.with_best_tile = lambda kind, given, shape, run: run(
        tune.CANDIDATES[kind][which % len(tune.CANDIDATES[kind]) if kind in ALL_FIT else 0]
    )

    def leaf(*shape: int) -> torch.Tensor:
        return torch.randn(*shape).bfloat16().requires_grad_()

    x_TD, w_up_EDF, w_down_EFD = leaf(T, D), leaf(E, D, F), leaf(E, F, D)
    w_gate_EDF = leaf(E, D, F) if activation == "swiglu" else None
    gate_TK, expert_TK = torch.rand(T, k, requires_grad=True), torch.zeros(T, k, dtype=torch.int64)
    out_TD = experts.run_experts(x_TD, gate_TK, expert_TK, w_gate_EDF, w_up_EDF, w_down_EFD, activation, 0.0)
    torch.autograd.grad(out_TD, [x_TD, gate_TK, w_up_EDF, w_down_EFD], torch.ones_like(out_TD))


if __name__ == "__main__":
    main()
