"""Whose a kernel of compiled code is, by the lines of source that its operations came from."""

import ast
from pathlib import Path

import pytest
import torch

import moebius
from moebius.config import ParallelConfig
from moebius.model.backends import choose_backends
from moebius.model.transformer import Transformer, seeded
from moebius.profile.instrument import instrument
from moebius.profile.kernels import OWNERS, marked_kernels, owners
from moebius.profile.timeline import Piece, Timeline
from tests.model.tiny import random_tokens, tiny

PACKAGE = Path(moebius.__file__).parent


def trace(*frames: str) -> str:
    lines = []
    for frame in frames:
        file, function = frame.split(":")
        lines.append(f'  File "{PACKAGE / "model" / file}.py", line 7, in {function}\n    some code')
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("operations", "expected"),
    [
        ([("aten.mm", trace("transformer:forward", "attention:forward"))], ("attention_projections",)),
        ([("aten.bmm", trace("attention:forward", "attention:attend"))], ("attention_core",)),
        ([("aten.mul", trace("attention:forward", "rope:rotate"))], ("rotary",)),
        ([("aten.topk", trace("moe:forward", "router:forward"))], ("router",)),
        ([("aten.mul", trace("moe:forward", "experts:grouped", "mlp:activate"))], ("activation",)),
        ([("aten.mm", trace("moe:forward", "mlp:forward"))], ("base_mlp",)),
        ([("aten.mul", trace("moe:forward", "mlp:forward", "mlp:activate"))], ("base_mlp",)),  # whatever happens in it
        ([("aten.mm", trace("mtp:forward", "moe:forward", "experts:grouped"))], ("mtp",)),
        ([("aten.mul", "")], ("everything_else",)),
        ([("aten.rms_norm", trace("transformer:forward"))], ("norms",)),
        # a fused kernel is of all that it computes, but a cast or an addition on the way is nobody's
        ([("aten.mul", trace("rope:rotate")), ("aten.topk", trace("router:forward"))], ("rotary", "router")),
        ([("aten.mul", trace("rope:rotate")), ("aten.add", trace("router:forward"))], ("rotary",)),
        ([("aten.add", trace("router:forward"))], ("router",)),
        # a product is its own, whatever its input came from
        ([("aten.mm.default", trace("attention:forward")), ("aten.rms_norm", trace("head:head"))], ("attention_projections",)),
        ([("aten.addmm", trace("head:head")), ("aten.mul", trace("rope:rotate"))], ("lm_head",)),
        (
            [("aten._grouped_mm.default", trace("experts:compute")), ("aten.index", trace("experts:dispatch"))],
            ("expert_gemms",),
        ),
        (
            [("moebius.experts_forward.default", trace("experts:triton")), ("aten.topk", trace("router:forward"))],
            ("expert_gemms",),
        ),
        ([("flex_attention", trace("flex:attend_flex")), ("aten.mul", trace("rope:rotate"))], ("attention_core",)),
        ([("aten.comma.default", trace("rope:rotate")), ("aten.topk", trace("router:forward"))], ("rotary", "router")),
    ],
)
def test_owners(operations, expected):
    assert owners(operations) == expected


def test_compiled_code_is_marked_and_computes_the_same():
    config = tiny(num_layers=1, base_expansion=1.0)
    backends = choose_backends(ParallelConfig(expert_backend="grouped"), dtype=torch.bfloat16)
    tokens_BL = random_tokens(config)

    def learn(model: Transformer) -> torch.Tensor:
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model.loss(tokens_BL).total
        loss.backward()
        return loss.detach()

    plain, model = seeded(0, config, backends), seeded(0, config, backends)
    expected = learn(plain)
    torch._dynamo.reset()
    timeline = Timeline(torch.device("cpu"))
    with marked_kernels():
        model.layers[0].compile(fullgraph=True)
        learn(model)
        timeline.begin()
        loss = learn(model)
        found = timeline.end()
    assert torch.allclose(loss, expected, rtol=1e-2)
    for (name, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert ours.grad is not None and theirs.grad is not None, name
        assert (ours.grad - theirs.grad).norm() <= 0.05 * theirs.grad.norm(), name
    both = {"attention_projections", "attention_core", "router", "expert_gemms", "base_mlp", "norms", "dispatch", "combine"}
    for direction in ("forward", "backward"):
        assert both <= {piece.component for piece in found if piece.direction == direction}


def test_experts_that_the_compiler_leaves_alone_are_marked_too():
    """One by one they take as many tokens as the router says."""
    config = tiny(num_layers=1, dim=192)
    model = seeded(0, config, choose_backends(ParallelConfig(expert_backend="loop")))
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
        found = timeline.end()
    for direction in ("forward", "backward"):
        of_experts = found[Piece("expert_gemms", direction)]
        assert of_experts > max(found[Piece("everything_else", direction)], found[Piece("activation", direction)])


def test_those_of_multi_token_prediction_are_its_own():
    model = seeded(0, tiny(num_layers=1, use_mtp=True), choose_backends(ParallelConfig(expert_backend="loop")))
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


def test_the_functions_that_own_kernels_are_there():
    """One that is renamed would silently give its kernels to another."""
    for file, function in OWNERS:
        if file == "functional":  # torch's
            continue
        tree = ast.parse((PACKAGE / "model" / f"{file}.py").read_text())
        names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert not function or function in names, (file, function)
