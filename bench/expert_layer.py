"""Compare the expert layer with its dense twin and with other implementations, on one GPU.

    python bench/expert_layer.py                 the documented cases
    python bench/expert_layer.py --all           also other widths, and more and smaller experts
    python bench/expert_layer.py --rows 0 2 --only triton dense

The contenders take turns, A B C A B C. A figure is the median of a contender's turns in
milliseconds, for the forward pass and for forward and backward together. `host` is the time that
the host takes to start both; where it is the larger, the device waits for the host. `error` is the
largest error of the output and of a gradient, compared with `loop` in float32; a row that was not
compared says so. `saved` is what autograd keeps for backward, without the weights. The load of the
experts is one of these: uneven (random logits, with a random bias for each expert), even (without
a bias), half (half of the tokens on one expert), or one (all of them).
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from moebius.moe import experts
from moebius.moe.experts import ExpertWeights
from moebius.moe.router import Routing

ROUNDS, CALLS = 12, 4
"""Turns of each contender, and its calls in one turn."""


class Case(NamedTuple):
    """The shape of one layer, and the load of its experts."""

    tokens: int
    num_experts: int
    k: int
    """Experts per token."""
    dim: int = 896
    width: int = 3136
    """Hidden width of each expert."""
    load: str = "uneven"
    """One of uneven, even, half and one."""


FIRST = Case(32768, 4, 1)
ROWS = [FIRST, Case(65536, 8, 1), Case(16384, 8, 1), Case(65536, 8, 2)]
ROWS += [FIRST._replace(load=load) for load in ("even", "half", "one")]
SMALL = Case(32768, 32, 4, 896, 768)
ROWS += [
    SMALL,
    *(SMALL._replace(load=load) for load in ("even", "one")),
    Case(65536, 64, 4, 896, 768),
    Case(65536, 64, 4, 512, 384),
    Case(65536, 128, 8, 1024, 512),
    Case(32768, 64, 8, 512, 192),
]
MORE = [
    *(FIRST._replace(width=width) for width in (2688, 3584)),
    *(Case(65536, num_experts, 1) for num_experts in (32, 64)),
    Case(16384, 64, 8, 2048, 1024),
]


class Layer(NamedTuple):
    """The inputs of one case; all are bfloat16 but the gates."""

    case: Case
    x_TD: Tensor
    upstream_TD: Tensor
    """The gradient of the output."""
    routing: Routing
    weights: ExpertWeights
    w_in: Tensor
    """Gate and up projection of the dense twin, side by side. Its hidden width is k * width."""
    w_out: Tensor
    """Down projection of the dense twin."""


Run = Callable[[Layer], Tensor]
"""A contender: it returns the output of the layer."""


def main() -> None:
    options = read_options(__doc__)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    for case in options.cases:
        torch.manual_seed(0)
        layer_table(make_layer(case), options.only)
        torch.cuda.empty_cache()


class Options(NamedTuple):
    """The command line."""

    cases: list[Case]
    only: list[str] | None
    """Names of what is measured. None measures everything."""


def read_options(description: str | None) -> Options:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="*", help="which of the cases, counted from 0")
    parser.add_argument("--only", nargs="*", help="names of what is measured")
    parser.add_argument("--all", action="store_true", help="more cases")
    options = parser.parse_args()
    if options.rows is not None:
        return Options([(ROWS + MORE)[row] for row in options.rows], options.only)
    return Options(ROWS + MORE if options.all else ROWS, options.only)


def make_layer(case: Case) -> Layer:
    """Return random inputs for a case."""
    T, E, k, D, hidden, load = case
    bias = 0.5 if load == "uneven" else 0.0
    logits_TE = torch.randn(T, E, device="cuda") + bias * torch.randn(E, device="cuda")
    if load in ("half", "one"):
        with_first = T if load == "one" else T // 2
        logits_TE[:with_first, 0], logits_TE[with_first:, 0] = 100, -100
    gate_TK, expert_TK = logits_TE.softmax(dim=-1).topk(k, dim=-1)

    def leaf(*shape: int, fan_in: int = 1) -> Tensor:
        return (torch.randn(*shape, device="cuda") / fan_in**0.5).bfloat16().requires_grad_()

    w_gate_EDF, w_up_EDF = leaf(E, D, hidden, fan_in=D), leaf(E, D, hidden, fan_in=D)
    w_down_EFD = leaf(E, hidden, D, fan_in=hidden)
    w_in, w_out = leaf(D, 2 * k * hidden, fan_in=D), leaf(k * hidden, D, fan_in=hidden)
    return Layer(
        case,
        x_TD=leaf(T, D),
        upstream_TD=leaf(T, D).detach(),
        routing=Routing(gate_TK.detach().requires_grad_(), expert_TK, logits_TE, logits_TE),
        weights=ExpertWeights(w_gate_EDF, w_up_EDF, w_down_EFD, "swiglu", 0.0),
        w_in=w_in,
        w_out=w_out,
    )


def contenders(layer: Layer) -> Iterator[tuple[str, Run]]:
    """Yield the name and the function of every implementation that is installed."""
    activate = torch.compile(swiglu, dynamic=False)
    compiled = torch.compile(experts.grouped, dynamic=False)
    dense = torch.compile(lambda x_TD, w_in, w_out: swiglu(x_TD @ w_in) @ w_out, dynamic=False)
    gate_and_up = [matrix for matrix in layer.weights[:2] if matrix is not None]
    both = torch.cat(gate_and_up, dim=-1).detach().requires_grad_()
    yield "triton", lambda layer: experts.triton(layer.x_TD, layer.routing, layer.weights)
    yield "dense", lambda layer: dense(layer.x_TD, layer.w_in, layer.w_out)
    yield "grouped", lambda layer: experts.grouped(layer.x_TD, layer.routing, layer.weights)
    yield "grouped, compiled", lambda layer: compiled(layer.x_TD, layer.routing, layer.weights)
    yield "one up+gate grouped_mm", lambda layer: one_up_gate(layer, both, activate)
    with suppress(ImportError):
        from transformers import MixtralConfig
        from transformers.models.mixtral.modeling_mixtral import MixtralExperts

        case = layer.case
        config = MixtralConfig(
            hidden_size=case.dim, intermediate_size=case.width, num_local_experts=case.num_experts
        )
        config._experts_implementation = "grouped_mm"
        mixtral = MixtralExperts(config).cuda().bfloat16()
        with torch.no_grad():
            mixtral.get_parameter("gate_up_proj").copy_(both.transpose(1, 2))
            mixtral.get_parameter("down_proj").copy_(layer.weights.w_down_EFD.transpose(1, 2))

        def run(layer: Layer) -> Tensor:
            gate_TK = layer.routing.gate_TK.bfloat16()
            return mixtral(layer.x_TD, layer.routing.expert_TK, gate_TK)

        yield "transformers", run


def swiglu(pre: Tensor) -> Tensor:
    """Return SwiGLU of a gate and an up projection that lie side by side."""
    gate, up = pre.chunk(2, dim=-1)
    return F.silu(gate) * up


def one_up_gate(layer: Layer, w_in_ED2F: Tensor, activate: Callable[[Tensor], Tensor]) -> Tensor:
    """Return what `grouped` does, with the up and the gate projection in one product.

    Every assignment must have an expert.
    """
    order = experts.sort_by_expert(layer.routing.expert_TK, layer.case.num_experts)
    x_RD = experts._Gather.apply(layer.x_TD, order.assignment_R // layer.case.k, order.row_TK)
    hidden_RF = activate(F.grouped_mm(x_RD, w_in_ED2F, offs=order.end_E))
    y_RD = F.grouped_mm(hidden_RF, layer.weights.w_down_EFD, offs=order.end_E)
    return experts.combine(y_RD, layer.routing.gate_TK, order)


def cublas(layer: Layer, with_backward: bool) -> list[Tensor]:
    """Return the dense twin's matrix products, computed by cuBLAS without anything in between."""
    x_TD, grad_TD = layer.x_TD.detach(), layer.upstream_TD
    w_in, w_out = layer.w_in.detach(), layer.w_out.detach()
    pre = x_TD @ w_in
    hidden = pre.view(2, len(x_TD), -1)[0]  # stands for any matrix of this shape
    out_TD = hidden @ w_out
    if not with_backward:
        return [out_TD]
    return [out_TD, grad_TD @ w_out.T, hidden.T @ grad_TD, pre @ w_in.T, x_TD.T @ pre]


def layer_table(layer: Layer, only: list[str] | None) -> None:
    """Print a row for every contender."""
    runs = {name: run for name, run in contenders(layer) if only is None or name in only}
    exact = exactly(layer)
    checked = {
        name: (error_of(name, run, layer, exact), saved_by(run, layer))
        for name, run in runs.items()
    }
    forward_ms = interleaved({name: (lambda run=run: run(layer)) for name, run in runs.items()})
    both_ms = interleaved({name: (lambda run=run: step(run, layer)) for name, run in runs.items()})
    rows_E = layer.routing.expert_TK.flatten().bincount()
    print(f"\n{layer.case}; rows of each expert: {rows_E.tolist()}")
    columns = f"{'dense/own':>11}{'host':>9}{'error':>13}{'saved MiB':>11}"
    print(f"{'':24}{'forward':>9}{'both':>9}{columns}")
    for name, run in runs.items():
        ratio = both_ms.get("dense", float("nan")) / both_ms[name]
        error, saved = checked[name]
        times = f"{forward_ms[name]:9.3f}{both_ms[name]:9.3f}{ratio:11.3f}"
        print(f"{name:24}{times}{host_time(run, layer):9.3f}{error:>13}{saved / 2**20:11.0f}")
    if only is None or "cuBLAS" in only:
        products = interleaved(
            {
                str(with_backward): (lambda w=with_backward: cublas(layer, w))
                for with_backward in (False, True)
            }
        )
        print(f"{'cuBLAS products alone':24}{products['False']:9.3f}{products['True']:9.3f}")


def leaves(layer: Layer) -> list[Tensor]:
    """Return the tensors whose gradients are compared: x, the gates and the matrices."""
    return [layer.x_TD, layer.routing.gate_TK, *(w for w in layer.weights[:3] if w is not None)]


def step(run: Run, layer: Layer) -> tuple[Tensor | None, ...]:
    """Run forward and backward, and return the gradients; None for inputs that are not used."""
    inputs = [*leaves(layer), layer.w_in, layer.w_out]
    return torch.autograd.grad(run(layer), inputs, layer.upstream_TD, allow_unused=True)


def exactly(layer: Layer) -> list[Tensor] | None:
    """Return the output and the gradients by `loop` in float32; None where memory ends."""
    try:
        return _exactly(layer)
    except torch.OutOfMemoryError:
        return None


def _exactly(layer: Layer) -> list[Tensor]:
    out_TD = experts.loop(layer.x_TD.float(), layer.routing, layer.weights.to(torch.float32))
    return [
        out_TD.detach(),
        *torch.autograd.grad(out_TD, leaves(layer), layer.upstream_TD.float()),
    ]


def error_of(name: str, run: Run, layer: Layer, exact: list[Tensor] | None) -> str:
    """Return the largest relative error of the output and of a gradient."""
    if exact is None or name == "dense":  # the dense twin computes something else
        return "not checked"
    ours = [run(layer).detach(), *step(run, layer)[:5]]
    pairs = [(a.float(), b) for a, b in zip(ours, exact, strict=True) if a is not None]
    return f"{max(((a - b).norm() / b.norm()).item() for a, b in pairs):.1e}"


def saved_by(run: Run, layer: Layer) -> int:
    """Return the bytes kept for backward, without the weights; a storage counts once."""
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run(layer)
    for weight in (*leaves(layer)[2:], layer.w_in, layer.w_out):
        sizes.pop(weight.untyped_storage().data_ptr(), None)
    return sum(sizes.values())


def host_time(run: Run, layer: Layer) -> float:
    """Return the milliseconds that the host takes to start forward and backward."""
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(8):
        step(run, layer)
    seconds = (time.perf_counter() - begin) / 8
    torch.cuda.synchronize()
    return 1000 * seconds


def interleaved(runs: dict[str, Callable[[], object]], rounds: int = ROUNDS) -> dict[str, float]:
    """Return the milliseconds of one call: the median over rounds of the mean of a few calls."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            run()  # before the clock starts, so that the device does not wait for the host
            begin.record()
            for _ in range(CALLS):
                run()
            end.record()
            end.synchronize()
            if turn:
                times[name].append(begin.elapsed_time(end) / CALLS)
    return {name: statistics.median(figures) for name, figures in times.items()}


if __name__ == "__main__":
    main()
