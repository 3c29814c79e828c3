"""Bytes per token that blocks keep for backward, counted by hand."""

from moebius.cost.activations import Activations, routed_rows
from tests.cost.test_counts import WIDTHS, D, E, G, H, N, small

KEPT_ATTENTION = (
    4 * D  # the residual stream
    + 2 * (D + N * H + G * H + G * H + N * H)  # norm, query, key, value and result
    + 4 * N  # the logarithm of each head's normalizer
    + 2 * D  # the second norm
)


def activations(experts: str = "grouped", compiled: bool = True, **changes: object) -> Activations:
    return Activations(small(**changes), 2, compiled, imbalance=1.0, experts=experts)


def test_there_is_a_row_for_every_expert_that_a_token_may_have():
    assert routed_rows(small(router_top_k=2), 0) == 2
    assert routed_rows(small(router_type="sigmoid", base_expansion=2.0), 0) == E
    assert routed_rows(small(num_experts=(0, 5), base_expansion=2.0), 0) == 0


def test_a_block_by_hand():
    routing = 3 * 4 * E + 2 * 8  # scores, and two indices of the only row
    # the input of the MLPs, and the input, result, two pre-activations and activation of each row
    experts = 2 * (D + 2 * D + 3 * WIDTHS[1])
    assert activations().of_mlps(1) == experts + routing
    assert activations().of_block(1) == KEPT_ATTENTION + experts + routing


def test_fused_kernels_keep_neither_activation_nor_result():
    plain, fused = activations().of_mlps(1), activations("triton").of_mlps(1)
    assert plain - fused == 2 * (D + WIDTHS[1])
    # With two slots per token, they gather the rows again instead of keeping them.
    plain, fused = (activations(name, router_top_k=2).of_mlps(1) for name in ("grouped", "triton"))
    assert plain - fused == 2 * 2 * (2 * D + WIDTHS[1])


def test_eager_code_keeps_more():
    more = activations(compiled=False).of_block(1) - activations().of_block(1)
    expanded = 2 * 2 * (N - G) * H  # key and value, copied for every query head
    stream_and_rotation = 4 * 2 * D + 2 * (N * H + N * H)
    assert more == expanded + stream_and_rotation + 2 * WIDTHS[1]


def test_norms_of_queries_and_keys_keep_their_inputs():
    for compiled, keys in ((True, G), (False, N)):  # expanded to all query heads in eager code
        more = activations(compiled=compiled, qk_norm=True).of_block(1)
        more -= activations(compiled=compiled).of_block(1)
        assert more == 2 * (N * H + keys * H)


def test_selective_checkpointing_keeps_the_results_of_products_and_attention():
    attention = 4 * (D + N) + 2 * (2 * N * H + 2 * G * H + D)
    assert activations().of_products(0) == attention + 2 * (2 * WIDTHS[0] + D)


def test_the_widest_gradients_of_backward():
    assert activations().of_backward(0) == 2 * (D + 2 * WIDTHS[0]) + 2 * 4 * D
    assert activations("triton").of_backward(0) == 2 * (D + 3 * WIDTHS[0]) + 2 * 4 * D


def test_an_uneven_load_has_more_rows():
    uneven = Activations(small(), 2, compiled=True, imbalance=1.5, experts="grouped")
    row = 2 * (2 * D + 3 * WIDTHS[0]) + 2 * 8
    assert uneven.of_block(0) == activations().of_block(0) + 0.5 * row
