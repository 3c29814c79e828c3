"""What is written down about each expert backend agrees with what the backend does."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, get_args

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode

from moebius.config import ParallelConfig, TrainConfig
from moebius.config.expert_backends import EXPERT_BACKENDS
from moebius.config.fields import annotations
from moebius.moe.backends import expert_backend
from moebius.moe.experts import ExpertWeights
from moebius.moe.router import Routing
from tests.config.recomputed import CountedOperators, operators_in_backward

T, K, D, E, F = 11, 2, 16, 3, 32
MATRICES = 3  # gate, up and down
STATIC = [name for name, record in EXPERT_BACKENDS.items() if record.has_static_rows]


class Layer(NamedTuple):
    """The inputs of an expert backend."""

    x_TD: Tensor
    routing: Routing
    weights: ExpertWeights


def layer(taken: int = T) -> Layer:
    """Return a layer in bfloat16 in which the first `taken` tokens have K experts each."""
    up_EDF, gate_EDF, down_EFD = (
        torch.randn(shape, dtype=torch.bfloat16, requires_grad=True)
        for shape in ((E, D, F), (E, D, F), (E, F, D))
    )
    expert_TK = torch.arange(T * K).view(T, K) % E
    expert_TK[taken:] = E
    scores_TE = torch.rand(T, E)
    return Layer(
        torch.randn(T, D, dtype=torch.bfloat16, requires_grad=True),
        Routing(torch.rand(T, K, requires_grad=True), expert_TK, scores_TE, scores_TE),
        ExpertWeights(gate_EDF, up_EDF, down_EFD, "swiglu", dropout=0.0),
    )


@contextmanager
def without_data(monkeypatch: pytest.MonkeyPatch, name: str) -> Iterator[None]:
    """Compute nothing but shapes, so that kernels for GPUs need no GPU.

    Whatever depends on the data, as a number of rows might, cannot run.
    """
    if name == "triton":
        pytest.importorskip("triton", reason="triton is for Linux")
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with FakeTensorMode():
        yield


def kept_shapes(name: str, taken: int = T) -> list[tuple[int, ...]]:
    """Return the shapes of what a backend keeps for backward in bfloat16, without its inputs."""
    x_TD, routing, weights = layer(taken)
    inputs = {t.untyped_storage()._cdata for t in (x_TD, *weights[:3]) if t is not None}
    kept: dict[int, tuple[int, ...]] = {}

    def note(tensor: Tensor) -> Tensor:
        if tensor.dtype == torch.bfloat16:
            kept[tensor.untyped_storage()._cdata] = tuple(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        out_TD = expert_backend(name)(x_TD, routing, weights)
    assert out_TD.requires_grad
    return [shape for storage, shape in kept.items() if storage not in inputs]


def test_every_backend_can_be_chosen():
    # float8 is a separate backend, but train.expert_dtype chooses it.
    choices = get_args(annotations(ParallelConfig)["expert_backend"])
    arithmetics = get_args(annotations(TrainConfig)["expert_dtype"])
    assert {*choices, *arithmetics} - {"auto"} == set(EXPERT_BACKENDS)


@pytest.mark.parametrize("name", EXPERT_BACKENDS)
def test_static_rows_do_not_depend_on_the_data(name, monkeypatch):
    with without_data(monkeypatch, name):
        if not EXPERT_BACKENDS[name].has_static_rows:
            with pytest.raises(DynamicOutputShapeException):
                kept_shapes(name)
            return
        hidden = [shape for shape in kept_shapes(name) if shape[-1] == F]
    assert hidden and all(rows >= T * K for *_, rows, _ in hidden)


def test_the_loop_has_no_row_for_a_token_without_an_expert():
    rows = {
        taken: sum(shape[0] for shape in kept_shapes("loop", taken) if shape[-1] == F)
        for taken in (0, 1, 4, T)
    }
    assert rows[1] >= MATRICES * K  # two pre-activations and the activation
    assert rows == {taken: taken * rows[1] for taken in rows}


@pytest.mark.parametrize("name", STATIC)
def test_only_fused_kernels_keep_neither_activations_nor_results(name, monkeypatch):
    with without_data(monkeypatch, name):
        shapes = kept_shapes(name)
    numbers = {
        width: sum(torch.Size(shape).numel() for shape in shapes if shape[-1] == width)
        for width in (D, F)
    }
    rows = max(shape[-2] for shape in shapes if shape[-1] == F)
    if EXPERT_BACKENDS[name].is_fused:
        assert numbers == {D: 0, F: rows * F * (MATRICES - 1)}  # what comes before the activation
    else:
        assert numbers[F] > rows * F * (MATRICES - 1)
        assert numbers[D] >= 2 * T * K * D  # the inputs and results of the rows


@pytest.mark.parametrize("name", ["loop", "grouped", "float8"])
def test_selective_checkpointing_does_not_compute_what_the_record_keeps(name):
    kept = EXPERT_BACKENDS[name].kept_operators or ("aten.mm",)
    none, selective, full = (
        operators_in_backward(checkpointing, experts=name)
        for checkpointing in ("none", "selective", "full")
    )
    for operator in kept:
        assert none[operator] == selective[operator] < full[operator]


@pytest.mark.parametrize("name", STATIC)
def test_a_backend_runs_the_operators_that_its_record_keeps(name, monkeypatch):
    """A name that torch does not know would keep nothing."""
    with without_data(monkeypatch, name):
        inputs = layer()
        with CountedOperators() as counted:
            expert_backend(name)(*inputs)
    assert {*EXPERT_BACKENDS[name].kept_operators} <= counted.counts.keys()
