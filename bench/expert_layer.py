"""The expert layer against its dense twin and its peers, forward and backward, on one GPU.

    python bench/expert_layer.py                 the rows of docs/log.md
    python bench/expert_layer.py --all           also other widths, more experts, fine-grained experts
    python bench/expert_layer.py --rows 0 2 --only triton dense
    python bench/expert_layer.py --kernels       each product alone against cuBLAS, for every tile that tuning tries

Contenders take turns, A B C A B C; a figure is the median of its turns, in milliseconds. `host` is how long the host takes to
start forward and backward; the device waits for it where it is the larger. The error is the largest of output and gradients
against `loop` in float32. `saved` is what autograd keeps for backward, weights aside. Loads: by logits with a random bias for
each expert (uneven), all the same (even), half of the tokens on one expert (half), all of them (one).
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

from moebius.kernels import backward, forward, tune
from moebius.kernels.activation import Between
from moebius.kernels.order import sort_by_expert
from moebius.kernels.rows import combine, gather
from moebius.kernels.tiles import Tile
from moebius.kernels.weight_gradient import weight_gradients
from moebius.model import experts
from moebius.model.experts import ExpertWeights
from moebius.model.router import Routing

ROUNDS, CALLS = 12, 4


class Case(NamedTuple):
    tokens: int
    num_experts: int
    k: int
    dim: int = 896
    width: int = 3136
    load: str = "uneven"


FIRST = Case(32768, 4, 1)
ROWS = [FIRST, Case(65536, 8, 1), Case(16384, 8, 1), Case(65536, 8, 2)]
ROWS += [FIRST._replace(load=load) for load in ("even", "half", "one")]
MORE = [
    *(FIRST._replace(width=width) for width in (2688, 3584)),
    *(Case(65536, num_experts, 1) for num_experts in (32, 64)),
    Case(16384, 64, 8, 2048, 1024),
]


class Layer(NamedTuple):
    """One case's inputs, all bfloat16 but the gates, and the weights of its dense twin, of width k * width."""

    case: Case
    x_TD: Tensor
    upstream_TD: Tensor
    routing: Routing
    weights: ExpertWeights
    w_in: Tensor
    w_out: Tensor


Run = Callable[[Layer], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="*", help="which of the rows, counted from 0")
    parser.add_argument("--only", nargs="*", help="which contenders, or which products")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--kernels", action="store_true")
    options = parser.parse_args()
    cases = ROWS + MORE if options.all else ROWS
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    for case in cases if options.rows is None else [(ROWS + MORE)[row] for row in options.rows]:
        torch.manual_seed(0)
        show = kernel_table if options.kernels else layer_table
        show(make_layer(case), options.only)
        torch.cuda.empty_cache()


def make_layer(case: Case) -> Layer:
    T, E, k, D, hidden, load = case
    logits_TE = torch.randn(T, E, device="cuda") + 0.5 * torch.randn(E, device="cuda") * (load == "uneven")
    if load in ("half", "one"):
        with_first = T if load == "one" else T // 2
        logits_TE[:with_first, 0], logits_TE[with_first:, 0] = 100, -100
    gate_TK, expert_TK = logits_TE.softmax(dim=-1).topk(k, dim=-1)

    def leaf(*shape: int, fan_in: int = 1) -> Tensor:
        return (torch.randn(*shape, device="cuda") / fan_in**0.5).bfloat16().requires_grad_()

    matrices = leaf(E, D, hidden, fan_in=D), leaf(E, D, hidden, fan_in=D), leaf(E, hidden, D, fan_in=hidden)
    routing = Routing(gate_TK.detach().requires_grad_(), expert_TK, logits_TE, logits_TE)
    twin = leaf(D, 2 * k * hidden, fan_in=D), leaf(k * hidden, D, fan_in=hidden)
    return Layer(case, leaf(T, D), leaf(T, D).detach(), routing, ExpertWeights(*matrices, "swiglu", 0.0), *twin)


def contenders(layer: Layer) -> Iterator[tuple[str, Run]]:
    activate, compiled = torch.compile(swiglu, dynamic=False), torch.compile(experts.grouped, dynamic=False)
    dense = torch.compile(lambda x_TD, w_in, w_out: swiglu(x_TD @ w_in) @ w_out, dynamic=False)
    both = torch.cat([layer.weights[0], layer.weights[1]], dim=-1).detach().requires_grad_()  # pyright: ignore[reportArgumentType, reportCallIssue]
    yield "triton", lambda layer: experts.triton(layer.x_TD, layer.routing, layer.weights)
    yield "dense", lambda layer: dense(layer.x_TD, layer.w_in, layer.w_out)
    yield "grouped", lambda layer: experts.grouped(layer.x_TD, layer.routing, layer.weights)
    yield "grouped, compiled", lambda layer: compiled(layer.x_TD, layer.routing, layer.weights)
    yield "one up+gate grouped_mm", lambda layer: one_up_gate(layer, both, activate)
    with suppress(ImportError):
        from transformers import MixtralConfig
        from transformers.models.mixtral.modeling_mixtral import MixtralExperts

        case = layer.case
        config = MixtralConfig(hidden_size=case.dim, intermediate_size=case.width, num_local_experts=case.num_experts)
        config._experts_implementation = "grouped_mm"
        theirs = MixtralExperts(config).cuda().bfloat16()
        with torch.no_grad():
            theirs.get_parameter("gate_up_proj").copy_(both.transpose(1, 2))
            theirs.get_parameter("down_proj").copy_(layer.weights.w_down_EFD.transpose(1, 2))
        yield "transformers", lambda layer: theirs(layer.x_TD, layer.routing.expert_TK, layer.routing.gate_TK.bfloat16())


def swiglu(pre: Tensor) -> Tensor:
    gate, up = pre.chunk(2, dim=-1)
    return F.silu(gate) * up


def one_up_gate(layer: Layer, w_in_ED2F: Tensor, activate: Callable[[Tensor], Tensor]) -> Tensor:
    """`grouped` with up and gate in one product, for routings that leave no token without an expert."""
    order = experts.sort_by_expert(layer.routing.expert_TK, layer.case.num_experts)
    x_RD = experts._Gather.apply(layer.x_TD, order.assignment_R // layer.case.k, order.row_TK)
    hidden_RF = activate(F.grouped_mm(x_RD, w_in_ED2F, offs=order.end_E))
    y_RD = F.grouped_mm(hidden_RF, layer.weights.w_down_EFD, offs=order.end_E)
    return experts.combine(y_RD, layer.routing.gate_TK, order)


def cublas(layer: Layer, with_backward: bool) -> list[Tensor]:
    """The dense twin's products alone."""
    x_TD, grad_TD, w_in, w_out = layer.x_TD.detach(), layer.upstream_TD, layer.w_in.detach(), layer.w_out.detach()
    pre = x_TD @ w_in
    hidden = pre.view(2, len(x_TD), -1)[0]  # any of the right shape
    made = [hidden @ w_out]
    return [*made, grad_TD @ w_out.T, hidden.T @ grad_TD, pre @ w_in.T, x_TD.T @ pre] if with_backward else made


def layer_table(layer: Layer, only: list[str] | None) -> None:
    runs = {name: run for name, run in contenders(layer) if only is None or name in only}
    exact = exactly(layer) if layer.case.tokens * layer.case.k <= 32768 else None
    checked = {name: (error_of(name, run, layer, exact), saved_by(run, layer)) for name, run in runs.items()}
    forward_ms = interleaved({name: (lambda run=run: run(layer)) for name, run in runs.items()})
    both_ms = interleaved({name: (lambda run=run: step(run, layer)) for name, run in runs.items()})
    print(f"\n{layer.case}; rows of each expert: {layer.routing.expert_TK.flatten().bincount().tolist()}")
    print(f"{'':24}{'forward':>9}{'both':>9}{'dense/own':>11}{'host':>9}{'error':>10}{'saved MiB':>11}")
    for name, run in runs.items():
        ratio = both_ms.get("dense", float("nan")) / both_ms[name]
        error, saved = checked[name]
        times = f"{forward_ms[name]:9.3f}{both_ms[name]:9.3f}{ratio:11.3f}{host_time(run, layer):9.3f}"
        print(f"{name:24}{times}{error:10.1e}{saved / 2**20:11.0f}")
    if only is None or "cuBLAS" in only:
        alone = interleaved({str(with_backward): (lambda w=with_backward: cublas(layer, w)) for with_backward in (False, True)})
        print(f"{'cuBLAS products alone':24}{alone['False']:9.3f}{alone['True']:9.3f}")


def leaves(layer: Layer) -> list[Tensor]:
    return [layer.x_TD, layer.routing.gate_TK, *(w for w in layer.weights[:3] if w is not None)]


def step(run: Run, layer: Layer) -> tuple[Tensor | None, ...]:
    """Forward and backward: the gradient of everything that the contender's layer has."""
    inputs = [*leaves(layer), layer.w_in, layer.w_out]
    return torch.autograd.grad(run(layer), inputs, layer.upstream_TD, allow_unused=True)


def exactly(layer: Layer) -> list[Tensor]:
    out_TD = experts.loop(layer.x_TD.float(), layer.routing, layer.weights.to(torch.float32))
    return [out_TD.detach(), *torch.autograd.grad(out_TD, leaves(layer), layer.upstream_TD.float())]


def error_of(name: str, run: Run, layer: Layer, exact: list[Tensor] | None) -> float:
    ours = [run(layer).detach(), *step(run, layer)[:5]]
    if exact is None or name == "dense":
        return float("nan")
    pairs = [(a.float(), b) for a, b in zip(ours, exact, strict=True) if a is not None]
    return max(((a - b).norm() / b.norm()).item() for a, b in pairs)


def saved_by(run: Run, layer: Layer) -> int:
    """Bytes kept for backward, each storage once, without the weights."""
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
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(8):
        step(run, layer)
    took = (time.perf_counter() - begin) / 8
    torch.cuda.synchronize()
    return 1000 * took


def interleaved(runs: dict[str, Callable[[], object]], rounds: int = ROUNDS) -> dict[str, float]:
    """Milliseconds of each: the median over rounds of the mean of a few calls."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            run()  # ahead of the clock, so that the device does not wait for the host
            begin.record()
            for _ in range(CALLS):
                run()
            end.record()
            end.synchronize()
            if turn:
                times[name].append(begin.elapsed_time(end) / CALLS)
    return {name: statistics.median(figures) for name, figures in times.items()}


def kernel_table(layer: Layer, only: list[str] | None) -> None:
    print(f"\n{layer.case}")
    case, x_TD, grad_TD, gate_TK = layer.case, layer.x_TD.detach(), layer.upstream_TD, layer.routing.gate_TK.detach()
    w_gate, w_up, w_down = (w.detach() for w in layer.weights[:3] if w is not None)
    order = sort_by_expert(layer.routing.expert_TK, case.num_experts)
    between = Between("swiglu", 0.0, order.start)
    x_RD, grad_RD = gather(x_TD, order), gather(grad_TD, order)
    pre, hidden = forward.up(x_RD, w_gate, w_up, order, between, tune.CANDIDATES["swiglu"][0])
    tile = tune.CANDIDATES["swiglu_backward"][0]
    pre_grad, gated, _ = backward.down_backward(grad_RD, w_down, pre, gate_TK, order, between, tile)
    wide, narrow = torch.cat([w_gate[0], w_up[0]], dim=1), w_down[0]
    flat = pre.view(len(x_RD), -1)
    # matrices of D x F, by a tile, by cuBLAS
    products: dict[str, tuple[int, Callable[[Tile], object], Callable[[], object]]] = {
        "swiglu": (2, lambda t: forward.up(x_RD, w_gate, w_up, order, between, t), lambda: x_RD @ wide),
        "down": (1, lambda t: forward.down(hidden, w_down, gate_TK, order, t), lambda: hidden @ narrow),
        "swiglu_backward": (
            1, lambda t: backward.down_backward(grad_RD, w_down, pre, gate_TK, order, between, t), lambda: grad_RD @ narrow.T,
        ),
        "up_backward": (2, lambda t: backward.up_backward(pre_grad, w_gate, w_up, order, t), lambda: flat @ wide.T),
        "weights": (
            3, lambda t: weight_gradients(x_RD, pre_grad, gated, grad_RD, order, case.num_experts, t),
            lambda: (x_RD.T @ flat, hidden.T @ grad_RD),
        ),
    }  # fmt: skip
    for name, (matrices, run, peer) in products.items():
        if only is not None and name not in only:
            continue
        runs: dict[str, Callable[[], object]] = {"cuBLAS": peer}
        for tile in tune.CANDIDATES[name]:
            with suppress(tune.OutOfResources):
                run(tile)
                runs[" ".join(map(str, tile))] = lambda tile=tile, run=run: run(tile)
        for label, took in interleaved(runs, 5).items():
            rate = 2e-9 * len(x_RD) * case.dim * case.width * matrices / took
            print(f"{name:14}{label:34}{took:8.3f} ms{rate:6.0f} TFLOP/s")
    rest: dict[str, Callable[[], object]] = {
        "sort": lambda: sort_by_expert(layer.routing.expert_TK, case.num_experts),
        "gather": lambda: gather(x_TD, order),
        "combine": lambda: combine(x_RD, order, case.num_experts),
    }
    for label, took in interleaved({name: captured(run) for name, run in rest.items()}, 5).items():
        print(f"{label:48}{took:8.3f} ms")


def captured(run: Callable[[], object]) -> Callable[[], None]:
    """As a graph: kernels of microseconds, which the host starts too slowly one by one."""
    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


if __name__ == "__main__":
    main()
