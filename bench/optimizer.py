"""Measure what an optimizer step costs: Muon, Muon without our kernels, and AdamW, in turns.

    python bench/optimizer.py                                            on a GPU
    python bench/optimizer.py --layers 24 --dim 896 --experts 32 --width 768

The parameters are the hidden matrices of a mixture with SwiGLU experts and square attention
projections; gradients are random. For each of Muon's parts, the script prints the floor too: the
bytes of the elementwise passes, and the FLOPs of the products at the measured rate of a large
product. Symmetric products count half.
"""

import argparse
import statistics
from collections.abc import Callable

import torch
from torch import nn

from moebius.train import muon
from moebius.train.muon import NEWTON_SCHULZ_STEPS, Muon

ROUNDS, WARM_UP = 7, 3


def main() -> None:
    """Measure the three optimizers in turns, and print the medians."""
    options = _options()
    shapes = _shapes(options.layers, options.dim, options.experts, options.width)
    parameters = [nn.Parameter(torch.randn(shape, device="cuda")) for shape in shapes]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    count = sum(parameter.numel() for parameter in parameters)
    adamw = torch.optim.AdamW(parameters, lr=1e-3, fused=True)
    ours, plain = Muon(parameters, lr=1e-3), Muon(parameters, lr=1e-3)
    plain.state = ours.state  # one momentum serves both
    uses_kernels = muon.uses_kernels

    def without_kernels() -> None:
        muon.uses_kernels = lambda matrices: False
        try:
            plain.step()
        finally:
            muon.uses_kernels = uses_kernels

    steps: dict[str, Callable[[], object]] = {
        "AdamW": adamw.step,
        "Muon": ours.step,
        "Muon without our kernels": without_kernels,
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(WARM_UP + ROUNDS):
        for name, step in steps.items():
            seconds = _seconds(step)
            if number >= WARM_UP:
                times[name].append(seconds)
    name = torch.cuda.get_device_name()
    print(f"{name}: {count / 1e9:.2f}G parameters in {len(parameters)} tensors")
    for name, seconds in times.items():
        print(f"{name:<26} {statistics.median(seconds) * 1e3:8.2f} ms")
    added = statistics.median(times["Muon"]) - statistics.median(times["AdamW"])
    print(f"{'Muon adds to AdamW':<26} {added * 1e3:8.2f} ms")
    rate, bandwidth = _ceilings()
    flops = sum(_flops(shape) for shape in shapes)
    moved = count * (4 + 8 + 2 + 8 + 2)
    print(
        f"floor: products {flops / rate * 1e3:.2f} ms at {rate / 1e12:.0f} TFLOP/s, elementwise "
        f"passes {moved / bandwidth * 1e3:.2f} ms at {bandwidth / 1e12:.2f} TB/s"
    )


def _shapes(layers: int, dim: int, experts: int, width: int) -> list[tuple[int, ...]]:
    """Return the shapes of all hidden matrices, stacked by layer and kind."""
    attention = [(dim, dim)] * 4
    stacks = [(experts, dim, width)] * 2 + [(experts, width, dim)] if experts else []
    return (attention + stacks) * layers


def _flops(shape: tuple[int, ...]) -> float:
    """Return the FLOPs of a tensor's orthogonalization, with symmetric products at half."""
    short, long = sorted(shape[-2:])
    matrices = shape[0] if len(shape) == 3 else 1
    per_iteration = short * short * long + short**3 + 2 * short * short * long
    return matrices * NEWTON_SCHULZ_STEPS * per_iteration


def _seconds(step: Callable[[], object]) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    step()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def _ceilings() -> tuple[float, float]:
    """Return the device's rates of a large bfloat16 product and of a copy."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    copied = torch.empty(2**30, device="cuda", dtype=torch.uint8)
    product = min(_seconds(lambda: a @ b) for _ in range(10))
    copy = min(_seconds(lambda: copied.clone()) for _ in range(10))
    return 2 * 8192**3 / product, 2 * copied.numel() / copy


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What Muon adds to AdamW's step.")
    for name, default in (("layers", 24), ("dim", 896), ("experts", 32), ("width", 768)):
        parser.add_argument(f"--{name}", type=int, default=default)
    return parser.parse_args()


if __name__ == "__main__":
    main()
