"""The registry of the expert backends."""

import pytest

from moebius.config.expert_backends import EXPERT_BACKENDS
from moebius.moe import backends
from moebius.moe.backends import expert_backend
from moebius.moe.experts import grouped, loop, triton
from moebius.moe.float8 import float8


def test_every_record_has_a_backend():
    assert backends._PLACES.keys() == EXPERT_BACKENDS.keys()


def test_backends_are_found_by_name():
    functions = {"loop": loop, "grouped": grouped, "triton": triton, "float8": float8}
    assert {name: expert_backend(name) for name in EXPERT_BACKENDS} == functions


def test_an_unknown_name_is_an_error():
    with pytest.raises(KeyError, match="fastest"):
        expert_backend("fastest")
