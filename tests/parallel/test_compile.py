"""Compilation works under every kind of checkpointing and changes no gradient."""

import itertools
from dataclasses import replace

import pytest
import torch

from moebius.config import ParallelConfig
from moebius.hardware.backends import choose_backends
from moebius.model.transformer import seeded
from moebius.parallel.layout import lay_out
from tests.parallel.models import SMALL, VARIANTS, laid_out, loss_and_gradients, tokens_of

CHECKPOINTING = ["none", "full", "selective"]


@pytest.mark.parametrize("checkpointing", CHECKPOINTING)
def test_every_checkpointing_is_traced_whole(checkpointing):
    """This runs dynamo alone, without the slow code generation.

    The blocks are dense, because `loop` reads its counts from the device.
    """
    config = replace(SMALL, num_experts=0, dim=64, head_dim=16)
    model = laid_out(config, ParallelConfig(activation_checkpointing=checkpointing))
    expected = model.loss(tokens_of()).total
    for layer in model.layers:
        layer.compile(backend="eager", fullgraph=True)
    loss = model.loss(tokens_of()).total
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


SHORT = {*zip(VARIANTS, CHECKPOINTING, strict=True)}
"""Each variant and each checkpointing once."""


@pytest.mark.parametrize(
    ("variant", "checkpointing"),
    [
        pytest.param(*pair, marks=() if pair in SHORT else pytest.mark.heavy)
        for pair in itertools.product(VARIANTS, CHECKPOINTING)
    ],
)
def test_the_loop_over_experts_leaves_the_rest_to_the_compiler(variant, checkpointing):
    """`loop` reads its counts from the device, so it leaves compiled code and enters it again."""
    parallel = ParallelConfig(expert_backend="loop", activation_checkpointing=checkpointing)
    config = replace(VARIANTS[variant], expert_dropout=0.0)
    expected, gradients = loss_and_gradients(config, parallel)
    model = laid_out(config, parallel)
    torch._dynamo.reset()
    for module in [*model.layers, *filter(None, [model.mtp])]:
        module.compile(backend="eager")
    loss = model.loss(tokens_of(), end_of_text=3).total
    loss.backward()
    assert loss.item() == pytest.approx(expected.total.item(), rel=1e-6)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["grouped", "triton"])
@pytest.mark.parametrize(("variant", "checkpointing"), zip(VARIANTS, CHECKPOINTING, strict=True))
def test_compiled_is_eager(variant, checkpointing, backend):
    device = torch.device("cuda")
    # There is no dropout, because compiled code draws different numbers.
    config = replace(VARIANTS[variant], expert_dropout=0.0, dim=64, head_dim=16)
    eager = ParallelConfig(
        compile="off", expert_backend="loop", activation_checkpointing=checkpointing
    )
    losses = []
    for parallel in (eager, replace(eager, compile="on", expert_backend=backend)):
        model = seeded(0, config, choose_backends(parallel, device, torch.bfloat16)).to(device)
        lay_out(model, parallel, device)
        with torch.autocast("cuda", torch.bfloat16):
            loss = model.loss(tokens_of(2, 132).to(device), end_of_text=3)
        loss.total.backward()
        norms = [p.grad.norm() for p in model.parameters() if p.grad is not None]
        losses.append((loss.total.item(), torch.stack(norms).norm().item()))
    assert losses[1] == pytest.approx(losses[0], rel=2e-2)
