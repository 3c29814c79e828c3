"""What is written down about each attention backend agrees with what the backend does."""

from typing import Any, get_args

import pytest
import torch

from moebius.config import ParallelConfig
from moebius.config.attention import ATTENTION
from moebius.config.fields import annotations
from moebius.model.attention import attention_backend
from tests.config.recomputed import operators_in_backward
from tests.model.test_attention import DOCUMENTS, qkv
from tests.model.tiny import G, N, S

RUN_BY_TORCH = [name for name in ATTENTION if name != "flex"]  # flex is for GPUs
ON_CPUS = "aten._scaled_dot_product_flash_attention_for_cpu"


def test_every_backend_can_be_chosen():
    # The device decides which of torch's sdpa paths runs.
    choices = get_args(annotations(ParallelConfig)["attention_backend"])
    assert {*choices} - {"auto"} == {name.partition("_")[0] for name in ATTENTION}


@pytest.mark.parametrize("has_documents", [False, True])
@pytest.mark.parametrize("name", RUN_BY_TORCH)
def test_kv_heads_are_copied_exactly_where_the_record_says_so(name, has_documents, monkeypatch):
    attend = torch.nn.functional.scaled_dot_product_attention
    heads: list[int] = []

    def noted(query: Any, key: Any, value: Any, **settings: Any) -> Any:
        heads.extend((key.shape[1], value.shape[1]))
        return attend(query, key, value, **settings)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", noted)
    backend = attention_backend(name)
    backend.attend(
        *qkv(S, torch.float32, "cpu"), backend.mask(DOCUMENTS if has_documents else None)
    )
    assert heads == [N if ATTENTION[name].copies_kv_heads else G] * 2


@pytest.mark.parametrize("name", RUN_BY_TORCH)
def test_selective_checkpointing_does_not_compute_what_the_record_keeps(name):
    kept = set(ATTENTION[name].kept_operators)
    full, selective = (
        operators_in_backward(checkpointing, attention=name)
        for checkpointing in ("full", "selective")
    )
    assert kept & full.keys() == {ON_CPUS}
    assert kept & selective.keys() == set()


@pytest.mark.parametrize(
    "operator", sorted({name for record in ATTENTION.values() for name in record.kept_operators})
)
def test_a_kept_operator_is_one_of_torchs(operator):
    """A name that torch does not know would keep nothing."""
    library, _, name = operator.rpartition(".")
    found = getattr(getattr(torch.ops, library or "higher_order"), name)
    assert str(found) == operator
