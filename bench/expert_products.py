"""Compare each matrix product of the experts' kernels with cuBLAS, on one GPU.

    python bench/expert_products.py              the documented cases, for every tile that tuning
                                                 tries
    python bench/expert_products.py --rows 0 --only swiglu down

cuBLAS computes dense products of the same size. The kernels around the products are timed too.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

import torch
from expert_layer import Layer, interleaved, make_layer, read_options

from moebius.kernels import backward, forward, tune
from moebius.kernels.activation import Between
from moebius.kernels.order import sort_by_expert
from moebius.kernels.rows import combine, gather
from moebius.kernels.tiles import Tile
from moebius.kernels.weight_gradient import weight_gradients


def main() -> None:
    options = read_options(__doc__)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    for case in options.cases:
        torch.manual_seed(0)
        product_table(make_layer(case), options.only)
        torch.cuda.empty_cache()


class Product(NamedTuple):
    """One kind of matrix product."""

    matrices: int
    """Number of matrices of D x F that it multiplies by."""
    run: Callable[[Tile], object]
    """Runs our kernel with a tile."""
    by_cublas: Callable[[], object]
    """Runs a dense product of the same size by cuBLAS."""


def product_table(layer: Layer, only: list[str] | None) -> None:
    """Print the time and the rate of every product for every tile, and of the other kernels."""
    print(f"\n{layer.case}")
    case, rows = layer.case, layer.case.tokens * layer.case.k
    for name, product in products_of(layer).items():
        if only is not None and name not in only:
            continue
        runs: dict[str, Callable[[], object]] = {"cuBLAS": product.by_cublas}
        for tile in tune.CANDIDATES[name]:
            with suppress(tune.OutOfResources):
                product.run(tile)
                label = " ".join(map(str, tile))
                runs[label] = lambda tile=tile, run=product.run: run(tile)
        for label, ms in interleaved(runs, 5).items():
            rate = 2e-9 * rows * case.dim * case.width * product.matrices / ms
            print(f"{name:22}{label:40}{ms:8.3f} ms{rate:6.0f} TFLOP/s")
    for label, ms in interleaved(other_kernels(layer), 5).items():
        print(f"{label:62}{ms:8.3f} ms")


def products_of(layer: Layer) -> dict[str, Product]:
    """Return the products of the forward and the backward pass, by tuning's names."""
    num_experts, gate_TK = layer.case.num_experts, layer.routing.gate_TK.detach()
    w_gate, w_up, w_down = (w.detach() for w in layer.weights[:3] if w is not None)
    order = sort_by_expert(layer.routing.expert_TK, num_experts)
    between = Between("swiglu", 0.0, order.start)
    x_TD, grad_TD = layer.x_TD.detach(), layer.upstream_TD
    x_RD, grad_RD = gather(x_TD, order), gather(grad_TD, order)
    pre, hidden = forward.up(x_RD, w_gate, w_up, order, between, tune.BY_HAND)
    backward_inputs = (w_down, pre, gate_TK, order, between)
    pre_grad, gated, _ = backward.down_backward(grad_RD, *backward_inputs, tune.BY_HAND)
    of_slots = " of slots" if layer.case.k > 1 else ""
    wide, narrow = torch.cat([w_gate[0], w_up[0]], dim=1), w_down[0]
    flat = pre.view(len(x_RD), -1)

    def weights(tile: Tile) -> object:
        x, grad = (x_TD, grad_TD) if tile.gathers else (x_RD, grad_RD)
        return weight_gradients(x, pre_grad, gated, grad, order, num_experts, tile)

    return {
        f"swiglu{of_slots}": Product(
            2,
            lambda tile: forward.up(
                x_TD if tile.gathers else x_RD, w_gate, w_up, order, between, tile
            ),
            lambda: x_RD @ wide,
        ),
        f"down{of_slots}": Product(
            1,
            lambda tile: forward.down(hidden, w_down, gate_TK, order, tile),
            lambda: hidden @ narrow,
        ),
        f"swiglu_backward{of_slots}": Product(
            1,
            lambda tile: backward.down_backward(
                grad_TD if tile.gathers else grad_RD, *backward_inputs, tile
            ),
            lambda: grad_RD @ narrow.T,
        ),
        f"up_backward{of_slots}": Product(
            2,
            lambda tile: backward.up_backward(pre_grad, w_gate, w_up, order, tile),
            lambda: flat @ wide.T,
        ),
        "swiglu_weights of slots" if of_slots else "weights": Product(
            3,
            weights,
            lambda: (x_RD.T @ flat, hidden.T @ grad_RD),
        ),
    }


def other_kernels(layer: Layer) -> dict[str, Callable[[], object]]:
    """Return the kernels around the products, each as a graph."""
    x_TD, num_experts = layer.x_TD.detach(), layer.case.num_experts
    order = sort_by_expert(layer.routing.expert_TK, num_experts)
    x_RD = gather(x_TD, order)
    return {
        "sort": captured(lambda: sort_by_expert(layer.routing.expert_TK, num_experts)),
        "gather": captured(lambda: gather(x_TD, order)),
        "combine": captured(lambda: combine(x_RD, order, num_experts)),
    }


def captured(run: Callable[[], object]) -> Callable[[], None]:
    """Return the function as a CUDA graph.

    Its kernels take microseconds, and one by one the host would start them too slowly.
    """
    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


if __name__ == "__main__":
    main()
