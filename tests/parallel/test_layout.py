"""Checkpointing and compilation change neither a gradient nor a count."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from moebius.config import ModelConfig, ParallelConfig
from moebius.model.backends import choose_backends
from moebius.model.loss import Loss
from moebius.model.transformer import seeded
from moebius.parallel.layout import lay_out

SMALL = ModelConfig(
    vocab_size=67, dim=48, num_layers=3, num_heads=4, num_kv_heads=2, num_experts=5, base_expansion=1.0, expert_dropout=0.2
)
VARIANTS = {
    "top-2": replace(SMALL, router_top_k=2, router_z_loss_coeff=0.01),
    "sigmoid with MTP": replace(SMALL, router_type="sigmoid", use_mtp=True),
    "switch": replace(SMALL, router_type="switch", capacity_factor=1.0, residual_mix="learned"),
}


def run(config: ModelConfig, parallel: ParallelConfig) -> tuple[Loss, dict[str, Tensor]]:
    model = seeded(0, config, choose_backends(parallel))
    lay_out(model, parallel, torch.device("cpu"))
    tokens = torch.randint(67, (2, 13), generator=torch.Generator().manual_seed(1))
    torch.manual_seed(2)  # of the dropout, which recomputation must draw again
    loss = model.loss(tokens, end_of_text=3)
    loss.total.backward()
    return loss, {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("backend", ["loop", "grouped"])
@pytest.mark.parametrize("checkpointing", ["full", "selective"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_checkpointing_changes_nothing(variant, checkpointing, backend):
    plain, expected = run(VARIANTS[variant], ParallelConfig(expert_backend=backend))
    loss, gradients = run(VARIANTS[variant], ParallelConfig(expert_backend=backend, activation_checkpointing=checkpointing))
    assert torch.equal(loss.total, plain.total)
    assert gradients.keys() == expected.keys() == dict(seeded(0, VARIANTS[variant]).named_parameters()).keys()
    for name, gradient in gradients.items():
        assert torch.equal(gradient, expected[name]), name
    for layer, plain_layer in zip(loss.stats, plain.stats, strict=True):
        assert torch.equal(layer.tokens_per_expert_E, plain_layer.tokens_per_expert_E)


@pytest.mark.parametrize("checkpointing", ["full", "selective"])
def test_checkpointing_keeps_less(checkpointing):
    def kept(parallel: ParallelConfig) -> int:
        sizes: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        config = replace(SMALL, expert_dropout=0.0)
        model = seeded(0, config, choose_backends(parallel))
        lay_out(model, parallel, torch.device("cpu"))
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = model.loss(torch.randint(67, (4, 33)))
        weights = sum(parameter.nbytes for parameter in model.parameters())
        assert loss.total.requires_grad
        return sum(sizes.values()) - weights

    assert kept(ParallelConfig(activation_checkpointing=checkpointing)) < 0.7 * kept(ParallelConfig())


def test_names_of_parameters_stay():
    model = seeded(0, SMALL)
    names = [name for name, _ in model.named_parameters()]
    lines = lay_out(model, ParallelConfig(activation_checkpointing="full"), torch.device("cpu"))
    assert [name for name, _ in model.named_parameters()] == names
    assert lines == ["checkpointing: full", "compile: off (a CPU gains less than compiling costs)"]


@pytest.mark.parametrize("checkpointing", ["none", "full", "selective"])
def test_every_checkpointing_is_traced_whole(checkpointing):
    """dynamo alone, without its slow code generation; a dense block, since `loop` asks the device for its counts."""
    model = seeded(0, replace(SMALL, num_experts=0, dim=64, head_dim=16))
    lay_out(model, ParallelConfig(activation_checkpointing=checkpointing), torch.device("cpu"))
    tokens = torch.randint(67, (2, 13))
    expected = model.loss(tokens).total
    for layer in model.layers:
        layer.compile(backend="eager", fullgraph=True)
    loss = model.loss(tokens).total
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("checkpointing", ["none", "full", "selective"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_experts_one_by_one_leave_the_rest_to_the_compiler(variant, checkpointing):
    """`loop` asks the device for its counts, where compiled code is left and entered again."""
    parallel = ParallelConfig(expert_backend="loop", activation_checkpointing=checkpointing)
    config = replace(VARIANTS[variant], expert_dropout=0.0)
    expected, gradients = run(config, parallel)
    model = seeded(0, config, choose_backends(parallel))
    lay_out(model, parallel, torch.device("cpu"))
    torch._dynamo.reset()
    for module in [*model.layers, *filter(None, [model.mtp])]:
        module.compile(backend="eager")
    loss = model.loss(torch.randint(67, (2, 13), generator=torch.Generator().manual_seed(1)), end_of_text=3).total
    loss.backward()
    assert loss.item() == pytest.approx(expected.total.item(), rel=1e-6)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["grouped", "triton"])
@pytest.mark.parametrize(("variant", "checkpointing"), zip(VARIANTS, ("none", "full", "selective"), strict=True))
def test_compiled_is_eager(variant, checkpointing, backend):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    device = torch.device("cuda")
    config = replace(VARIANTS[variant], expert_dropout=0.0, dim=64, head_dim=16)  # dropout draws differ once compiled
    eager = ParallelConfig(compile="off", expert_backend="loop", activation_checkpointing=checkpointing)
    losses = []
    for parallel in (eager, replace(eager, compile="on", expert_backend=backend)):
        model = seeded(0, config, choose_backends(parallel, device, torch.bfloat16)).to(device)
        lay_out(model, parallel, device)
        tokens = torch.randint(67, (2, 132), generator=torch.Generator().manual_seed(1)).to(device)
        with torch.autocast("cuda", torch.bfloat16):
            loss = model.loss(tokens, end_of_text=3)
        loss.total.backward()
        norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
        losses.append((loss.total.item(), norm.item()))
    assert losses[1] == pytest.approx(losses[0], rel=2e-2)
