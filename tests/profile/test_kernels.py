"""Tests of which component a kernel of compiled code belongs to."""

import ast

import pytest
import torch

from moebius.config import ParallelConfig
from moebius.hardware.backends import choose_backends
from moebius.model.transformer import Transformer, seeded
from moebius.profile.kernels import OWNERS, PACKAGE, TORCH, marked_kernels, owners
from moebius.profile.timeline import Timeline
from tests.model.tiny import random_tokens, tiny


def trace(*frames: str) -> str:
    """Return a trace of source lines, from frames like `moe/router:forward`."""
    lines = []
    for frame in frames:
        file, function = frame.split(":")
        lines.append(f'  File "{PACKAGE / file}.py", line 7, in {function}\n    some code')
    return "\n".join(lines)


IN_MOE = "moe/layer:forward"
ROTATE = trace("model/rope:rotate")
ROUTE = trace("moe/router:forward")
ATTEND = trace("model/attention:forward", "model/attention:attend_native")
PROJECT = trace("model/transformer:forward", "model/attention:forward")
HEAD = trace("model/head:head_cross_entropy")


@pytest.mark.parametrize(
    ("operation", "frames", "component"),
    [
        ("aten.mm", PROJECT, "attention_projections"),
        ("aten.bmm", ATTEND, "attention_core"),
        ("flex_attention", trace("model/flex:attend_flex"), "attention_core"),
        ("aten.mul", trace("model/attention:forward", "model/rope:rotate"), "rotary"),
        ("aten.topk", trace(IN_MOE, "moe/router:forward"), "router"),
        ("aten.sum", trace(IN_MOE, "moe/statistics:layer_stats"), "router"),
        ("aten.mul", trace(IN_MOE, "moe/experts:grouped", "moe/mlp:activate"), "activation"),
        ("aten._grouped_mm", trace(IN_MOE, "moe/experts:grouped"), "expert_gemms"),
        ("moebius.experts_forward.default", trace("moe/experts:triton"), "expert_gemms"),
        ("aten.add", trace(IN_MOE, "moe/layer:_join"), "combine"),
        ("aten.mm", trace(IN_MOE, "moe/mlp:forward"), "base_mlp"),
        ("aten.add", ROUTE, "router"),
        ("aten.rms_norm", trace("model/transformer:forward"), "norms"),
        ("aten.mul", "", "everything_else"),
        ("aten.mul", '  File "/somewhere/moe/router.py", line 7, in forward', "everything_else"),
    ],
)
def test_the_innermost_listed_function_owns_an_operation(operation, frames, component):
    assert owners([(operation, frames)]) == (component,)


@pytest.mark.parametrize(
    ("frames", "component"),
    [
        ((IN_MOE, "moe/mlp:forward", "moe/mlp:activate"), "base_mlp"),
        (("model/mtp:forward", IN_MOE, "moe/experts:grouped"), "mtp"),
    ],
)
def test_a_whole_component_owns_whatever_happens_in_it(frames, component):
    assert owners([("aten.mul", trace(*frames))]) == (component,)


def test_torchs_norm_is_known_by_its_frame():
    file = '  File "/lib/python3/site-packages/torch/nn/functional.py", line 7, in rms_norm'
    assert owners([("aten.mul", trace("model/transformer:forward") + "\n" + file)]) == ("norms",)


@pytest.mark.parametrize(
    ("operations", "components"),
    [
        ([("aten.mul", ROTATE), ("aten.topk", ROUTE)], ("rotary", "router")),
        ([("aten.comma.default", ROTATE), ("aten.topk", ROUTE)], ("rotary", "router")),
        # a cast or an addition on the way does not count
        ([("aten.mul", ROTATE), ("aten.add", ROUTE)], ("rotary",)),
    ],
)
def test_a_fused_kernel_belongs_to_everything_that_it_computes(operations, components):
    assert owners(operations) == components


@pytest.mark.parametrize(
    ("operations", "component"),
    [
        ([("aten.mm.default", PROJECT), ("aten.rms_norm", HEAD)], "attention_projections"),
        ([("aten.addmm", HEAD), ("aten.mul", ROTATE)], "lm_head"),
        (
            [
                ("aten._grouped_mm.default", trace("moe/experts:compute")),
                ("aten.index", trace("moe/experts:dispatch")),
            ],
            "expert_gemms",
        ),
        ([("moebius.experts_forward", trace("moe/experts:triton")), ("aten.topk", ROUTE)],
         "expert_gemms"),
        ([("flex_attention", trace("model/flex:attend_flex")), ("aten.mul", ROTATE)],
         "attention_core"),
    ],
)  # fmt: skip
def test_a_product_is_a_kernel_of_its_own_whatever_its_inputs_came_from(operations, component):
    assert owners(operations) == (component,)


@pytest.mark.heavy
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
        pieces = timeline.end()
    assert torch.allclose(loss, expected, rtol=1e-2)
    for (name, compiled), eager in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert compiled.grad is not None and eager.grad is not None, name
        assert (compiled.grad - eager.grad).norm() <= 0.05 * eager.grad.norm(), name
    in_both_directions = {
        *("attention_projections", "attention_core", "router", "expert_gemms", "base_mlp"),
        *("norms", "dispatch", "combine"),
    }
    for direction in ("forward", "backward"):
        components = {piece.component for piece in pieces if piece.direction == direction}
        assert in_both_directions <= components


def test_every_function_that_owns_kernels_exists():
    """The kernels of a renamed function would silently be attributed to another component."""
    for file, function in OWNERS:
        if file == TORCH:
            continue
        tree = ast.parse((PACKAGE / f"{file}.py").read_text())
        names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert not function or function in names, (file, function)
