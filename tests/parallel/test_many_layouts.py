"""Every product of layouts with four processes, and every feature that a layout could disturb."""

from dataclasses import replace
from typing import Any

import pytest

from moebius.config import ParallelConfig
from tests.parallel.many import MODEL, Case, measured, measured_by, with_layout
from tests.parallel.test_many import check

pytestmark = pytest.mark.heavy

MTP = replace(MODEL, use_mtp=True, router_type="sigmoid", router_threshold=0.45)
SEQUENCE = replace(MODEL, aux_loss_scope="sequence", use_mtp=True)
GLOBAL = replace(MODEL, aux_loss_scope="global_batch", residual_mix="learned")
SWITCH = replace(MODEL, router_type="switch", router_top_k=1, capacity_factor=1.0)
FULL = ParallelConfig(activation_checkpointing="full")
SELECTIVE = ParallelConfig(activation_checkpointing="selective")
TIED = replace(MODEL, tie_embeddings=True, num_experts=8)
CASES = {
    "copies-muon": Case(SEQUENCE, optimizer="muon"),
    "hybrid": with_layout(Case(GLOBAL, FULL), replicate=2, shard=2),
    "hybrid-muon": with_layout(Case(MTP, optimizer="muon"), replicate=2, shard=2),
    "shard": with_layout(Case(SWITCH, SELECTIVE), shard=4),
    "shard-muon": with_layout(Case(optimizer="muon"), shard=4),
    "expert-mtp": with_layout(Case(MTP), expert=2),
    "expert-2": with_layout(Case(SWITCH, FULL), expert=2),
    "expert-4-muon": with_layout(Case(SEQUENCE, optimizer="muon", idle=True), expert=4),
    "sharded-experts": with_layout(Case(SEQUENCE, FULL), shard=4, expert=2),
    "sharded-experts-muon": with_layout(Case(TIED, optimizer="muon"), shard=4, expert=2),
    "copied-experts": with_layout(Case(GLOBAL, SELECTIVE), shard=2, expert=2),
    "wide-experts": with_layout(Case(MODEL, FULL, batch_size=10, idle=True), shard=2, expert=4),
    "few-experts": with_layout(
        Case(replace(MODEL, num_experts=2), optimizer="muon"), shard=4, expert=2
    ),
}


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> dict[str, list[Any]]:
    """Return what four processes measure in each of the cases."""
    return measured_by(4, tmp_path_factory.mktemp("many"), CASES)


@pytest.mark.parametrize("name", CASES)
def test_four_processes_have_the_numbers_of_one(many, name):
    parallel = replace(CASES[name].parallel, replicate=0, shard=1, expert=1)
    check(many[name], measured(replace(CASES[name], parallel=parallel), alike=4))
