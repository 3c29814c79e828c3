"""Tests that marks are put around every part of a model, and removed again."""

from typing import Literal

import pytest
import torch

from moebius.config import ModelConfig, ParallelConfig
from moebius.hardware.backends import choose_backends
from moebius.model.transformer import Transformer, seeded
from moebius.profile.instrument import IN_EAGER_BLOCKS, IN_EVERY_STEP, instrument, marked_calls
from moebius.profile.kernels import marked_kernels
from moebius.profile.timeline import Piece, Timeline
from tests.model.tiny import random_tokens, tiny


def model_of(config: ModelConfig, experts: Literal["loop", "grouped"]) -> Transformer:
    """Return a seeded model that runs its experts with the backend of that name."""
    return seeded(0, config, choose_backends(ParallelConfig(expert_backend=experts)))


def test_every_component_of_an_eager_model_is_marked():
    config = tiny(base_expansion=1.0, use_mtp=True, qk_norm=True)
    model = model_of(config, "grouped")
    timeline = Timeline(torch.device("cpu"))
    instrument(model, [torch.optim.AdamW(model.parameters())], timeline, compiled=False)
    with marked_calls(timeline, compiled=False, own_kernels=False):
        timeline.begin()
        model.loss(random_tokens(config)).total.backward()
        pieces = timeline.end()
    assert {piece.component for piece in pieces} == {
        *("embedding", "norms", "attention_projections", "rotary", "attention_core"),
        *("router", "dispatch", "expert_gemms", "activation", "combine", "base_mlp"),
        *("mtp", "lm_head", "everything_else"),
    }


@pytest.mark.parametrize("compiled", [True, False])
def test_functions_are_as_before_once_the_context_ends(compiled):
    marked = IN_EVERY_STEP + IN_EAGER_BLOCKS
    before = [getattr(place, name) for place, name, _ in marked]
    with marked_calls(Timeline(torch.device("cpu")), compiled, own_kernels=False):
        inside = [getattr(place, name) for place, name, _ in marked]
    is_marked = [one is not other for one, other in zip(before, inside, strict=True)]
    assert is_marked == [True] * len(IN_EVERY_STEP) + [not compiled] * len(IN_EAGER_BLOCKS)
    assert [getattr(place, name) for place, name, _ in marked] == before


@pytest.mark.heavy
def test_experts_that_the_compiler_leaves_alone_are_marked_too():
    """The shapes in the `loop` backend depend on the routing, so it is not compiled."""
    config = tiny(num_layers=1, dim=192)
    model = model_of(config, "loop")
    tokens_BL = random_tokens(config, batch=64)
    torch._dynamo.reset()
    timeline = Timeline(torch.device("cpu"))
    with marked_kernels():
        model.layers[0].compile()
        instrument(model, [], timeline, compiled=True)
        for _ in range(2):
            model.loss(tokens_BL).total.backward()
        timeline.begin()
        model.loss(tokens_BL).total.backward()
        pieces = timeline.end()
    for direction in ("forward", "backward"):
        in_experts = pieces[Piece("expert_gemms", direction)]
        assert in_experts > pieces[Piece("everything_else", direction)]
        assert in_experts > pieces[Piece("activation", direction)]


@pytest.mark.heavy
def test_the_experts_of_multi_token_prediction_belong_to_it():
    torch.manual_seed(0)
    model = model_of(tiny(num_layers=1, use_mtp=True), "loop")
    assert model.mtp is not None
    timeline = Timeline(torch.device("cpu"))
    instrument(model, [], timeline, compiled=True)
    hidden_BSD = torch.randn(2, 8, model.config.dim)
    timeline.begin()
    model.mtp(hidden_BSD)
    in_mtp = timeline.end()
    timeline.begin()
    model.layers[0].get_submodule("moe")(hidden_BSD)
    in_block = timeline.end()
    assert in_mtp[Piece("mtp", "forward")] > 0 and Piece("expert_gemms", "forward") not in in_mtp
    assert in_block[Piece("expert_gemms", "forward")] > 0
