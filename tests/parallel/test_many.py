"""Several processes compute the numbers of one process that has the same micro-batches."""

from dataclasses import replace
from typing import Any

import pytest
from torch.testing import assert_close

from tests.parallel.many import MODEL, Case, measured, measured_by, with_layout

NEARLY = 1e-10
CASES = {
    "replicate": Case(),
    "both-muon": with_layout(
        Case(
            replace(MODEL, aux_loss_scope="global_batch"),
            optimizer="muon",
            batch_size=9,
            micro_batch_size=3,
            idle=True,
        ),
        shard=2,
        expert=2,
    ),
}
"""What needs most of the code; test_many_layouts.py has the others."""


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> dict[str, list[Any]]:
    """Return what two processes measure in each of the cases."""
    return measured_by(2, tmp_path_factory.mktemp("many"), CASES)


@pytest.mark.parametrize("name", CASES)
def test_two_processes_have_the_numbers_of_one(many, name):
    check(many[name], measured(replace(CASES[name], parallel=Case().parallel), alike=2))


def test_an_idle_expert_has_no_token_and_no_gradient(many):
    assert all(layer[0][0] == 0 for step in many["both-muon"][0]["counts"] for layer in step)
    for name, gradient in many["both-muon"][0]["gradients"].items():
        if ".experts." in name:
            assert not gradient[0].any() and gradient[1:].any()


def check(ranks: list[dict[str, Any]], expected: dict[str, Any]) -> None:
    """Compare the measurements of each process with those of one process."""
    for own in ranks:
        for name in ("loss", "norm", "balance", "mtp"):
            assert_close(own[name], expected[name], rtol=NEARLY, atol=NEARLY, msg=name)
        assert own["counts"] == expected["counts"]
        for kind in ("gradients", "weights"):
            assert own[kind].keys() == expected[kind].keys()
            for name, value in own[kind].items():
                assert_close(value, expected[kind][name], rtol=NEARLY, atol=NEARLY, msg=name)
