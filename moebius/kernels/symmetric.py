# Triton's functions raise outside of a kernel, so pyright believes that they never return.
# pyright: reportGeneralTypeIssues=false
"""Products of matrices with their own transposes, which are symmetric, at half the work.

Only tiles on and below the diagonal are computed; each of the others is stored as the transpose of
its mirror image. The products of Newton-Schulz iterations are of this kind (see
moebius/train/muon.py).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from moebius.kernels.launch import cdiv, launch
from moebius.kernels.tiles import Tile, stack_descriptor
from moebius.kernels.tune import with_best_tile


def gram(x_XRC: Tensor) -> Tensor:
    """Return g = x @ x.T of each of X matrices, of shape (X, R, R)."""
    return _product("gram", x_XRC, None, None)


def polynomial(
    gram_XRR: Tensor,
    coefficients: tuple[float, float, float],
    scale_X: Tensor | None = None,
) -> Tensor:
    """Return s * (c[0] + c[1] * s² g + c[2] * (s² g) @ (s² g)) of each of X symmetric matrices g.

    The first coefficient is added on the diagonal. The scales s are float32; without them, s is 1.
    """
    if scale_X is None:
        scale_X = gram_XRR.new_ones(len(gram_XRR), dtype=torch.float32)
    return _product("polynomial", gram_XRR, coefficients, scale_X)


def _product(
    kind: str,
    x_XRC: Tensor,
    coefficients: tuple[float, float, float] | None,
    scale_X: Tensor | None,
) -> Tensor:
    """Return x @ x.T or, with coefficients, the polynomial of a symmetric x."""
    X, R, C = x_XRC.shape
    out_XRR = x_XRC.new_empty(X, R, R)

    def run(tile: Tile) -> Tensor:
        tiles = cdiv(R, tile.m)
        launch(
            _symmetric, (X * tiles * (tiles + 1) // 2,),
            stack_descriptor(x_XRC, tile.m, tile.k), stack_descriptor(x_XRC, tile.m, tile.m),
            x_XRC if scale_X is None else scale_X, stack_descriptor(out_XRR, tile.m, tile.m),
            R, C, *(coefficients or (0.0, 0.0, 0.0)), coefficients is not None,
            tile.m, tile.k, **tile.options(),
        )  # fmt: skip
        return out_XRR

    return with_best_tile(kind, x_XRC.flatten(0, 1), (R, C), run)


@triton.jit
def _symmetric(
    factor, x, scale_ptr, out, R, C, constant, linear, quadratic,
    IS_POLYNOMIAL: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Compute one tile of one matrix, and store it and its mirror image."""
    tiles = tl.cdiv(R, BM)
    pairs = tiles * (tiles + 1) // 2
    matrix, pair = tl.program_id(0) // pairs, tl.program_id(0) % pairs
    # Row i of the triangle begins at the pair i * (i + 1) / 2; the root may be off by one.
    i = ((tl.sqrt(8.0 * pair + 1) - 1) / 2).to(tl.int32)
    i = tl.where(i * (i + 1) // 2 > pair, i - 1, i)
    i = tl.where((i + 1) * (i + 2) // 2 <= pair, i + 1, i)
    m, n = i * BM, (pair - i * (i + 1) // 2) * BM
    total = tl.zeros((BM, BM), tl.float32)
    for k in range(0, C, BK):
        rows = factor.load([matrix, m, k]).reshape(BM, BK)
        columns = factor.load([matrix, n, k]).reshape(BM, BK)
        total = tl.dot(rows, columns.T, total, input_precision="ieee")
    if IS_POLYNOMIAL:
        scale = tl.load(scale_ptr + matrix)
        square = scale * scale
        own = square * x.load([matrix, m, n]).reshape(BM, BM).to(tl.float32)
        is_diagonal = (m + tl.arange(0, BM))[:, None] == (n + tl.arange(0, BM))[None, :]
        # The fourth power of the scale could overflow.
        total = quadratic * (square * (square * total)) + linear * own
        total = scale * (total + tl.where(is_diagonal, constant, 0.0))
    block = total.to(out.dtype)
    out.store([matrix, m, n], block.reshape(1, BM, BM))
    if m != n:
        out.store([matrix, n, m], block.T.reshape(1, BM, BM))
