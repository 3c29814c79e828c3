"""Muon against torch's and against the definition, the parameter groups, and the optimizer state as named tensors."""

import math

import pytest
import torch
from torch import Tensor, nn

from moebius.config import ModelConfig, TrainConfig
from moebius.errors import CheckpointError
from moebius.model.transformer import Transformer, seeded
from moebius.train.optimizer import (
    Muon,
    build_optimizers,
    load_named_state,
    named_state,
    orthogonalise,
    set_learning_rate,
)

E, D, F = 3, 24, 40


def parameters(*shapes: tuple[int, ...], seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def take_steps(optimizer: torch.optim.Optimizer, count: int, seed: int = 1) -> None:
    """Steps on gradients that depend on the seed and the order of the parameters alone."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.device)
        optimizer.step()


def reference_muon(weight: Tensor, gradients: list[Tensor], lr: float, weight_decay: float, momentum: float = 0.95) -> Tensor:
    """Muon of one matrix as the papers write it, in float64."""
    weight, buffer = weight.double(), torch.zeros_like(weight, dtype=torch.float64)
    for gradient in (gradient.double() for gradient in gradients):
        buffer = momentum * buffer + (1 - momentum) * gradient
        x = momentum * buffer + (1 - momentum) * gradient
        x = x / torch.linalg.matrix_norm(x)
        for _ in range(5):
            x = 3.4445 * x - 4.7750 * (x @ x.T) @ x + 2.0315 * (x @ x.T) @ (x @ x.T) @ x
        weight = weight - lr * weight_decay * weight - lr * 0.2 * math.sqrt(max(weight.shape)) * x
    return weight


@pytest.mark.parametrize("shape", [(D, F), (F, D), (D, D), (1, F), (F, 1)])
def test_muon_is_the_papers(shape):
    (weight,) = parameters(shape)
    start = weight.detach().clone()
    gradients = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
    optimizer = Muon([weight], lr=0.02, weight_decay=0.1)
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
    expected = reference_muon(start, gradients, lr=0.02, weight_decay=0.1)
    torch.testing.assert_close(weight.detach().double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(D, F), (F, D), (D, D)])
def test_muon_agrees_with_torchs_whose_products_are_bfloat16(shape):
    (ours,), (theirs,) = parameters(shape), parameters(shape)
    start = ours.detach().clone()
    take_steps(Muon([ours], lr=0.02, weight_decay=0.1), 3)
    take_steps(torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"), 3)
    moved = (theirs - start).norm()
    assert (ours - theirs).norm() < 0.02 * moved


def test_experts_are_orthogonalised_one_by_one():
    (together,) = parameters((E, D, F))
    apart = [nn.Parameter(matrix.clone()) for matrix in together.detach()]
    stacked, separate = Muon([together], lr=0.02), [Muon([matrix], lr=0.02) for matrix in apart]
    for seed in range(3):
        # gradients of very different sizes: as one lump the largest would drown the others
        gradient = (
            torch.randn(E, D, F, generator=torch.Generator().manual_seed(seed)) * torch.tensor([1e-3, 1.0, 1e3])[:, None, None]
        )
        together.grad = gradient
        stacked.step()
        for matrix, own, optimizer in zip(apart, gradient, separate, strict=True):
            matrix.grad = own.clone()
            optimizer.step()
    torch.testing.assert_close(together.detach(), torch.stack([matrix.detach() for matrix in apart]), rtol=1e-6, atol=1e-6)


def test_batching_parameters_of_one_shape_changes_nothing():
    shapes = [(D, F), (E, D, F), (2, E, D, F), (F, D)]
    together, apart = parameters(*shapes), parameters(*shapes)
    gradients = [torch.randn(shape) for shape in shapes]
    for group in (together, apart):
        for parameter, gradient in zip(group, gradients, strict=True):
            parameter.grad = gradient.clone()
    Muon(together, lr=0.02).step()
    for parameter in apart:
        Muon([parameter], lr=0.02).step()
    for one, other in zip(together, apart, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(E, D, F), (E, F, D), (E, D, D)])
def test_orthogonalised_matrices_keep_their_singular_vectors_and_have_singular_values_near_one(shape):
    matrices = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    u, before, v = torch.linalg.svd(matrices, full_matrices=False)
    found = u.mT @ orthogonalise(matrices) @ v.mT
    diagonal = found.diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(found, torch.diag_embed(diagonal), rtol=0, atol=1e-10)
    well_above_zero = before > 0.02 * before.square().sum(dim=-1, keepdim=True).sqrt()
    assert diagonal[well_above_zero].min() > 0.6 and diagonal.max() < 1.3


def test_updates_have_adamws_size():
    (weight,) = parameters((64, 256))
    start = weight.detach().clone()
    take_steps(Muon([weight], lr=1.0, weight_decay=0.0), 1)
    assert (weight.detach() - start).square().mean().sqrt().item() == pytest.approx(0.2, rel=0.25)


def test_zero_gradients_only_decay():
    (weight,) = parameters((E, D, F))
    start = weight.detach().clone()
    weight.grad = torch.zeros_like(weight)
    Muon([weight], lr=0.5, weight_decay=0.1).step()
    torch.testing.assert_close(weight.detach(), start * 0.95)


def test_a_matrix_without_a_gradient_is_left_alone():
    weight, idle = parameters((D, F), (D, F))
    start = idle.detach().clone()
    weight.grad = torch.ones_like(weight)
    Muon([weight, idle], lr=0.5).step()
    assert torch.equal(idle, start)


def test_muon_refuses_a_vector():
    with pytest.raises(ValueError, match=r"\[5\]"):
        Muon(parameters((5,)), lr=0.1)


def test_muon_is_deterministic():
    results = []
    for _ in range(2):
        weights = parameters((E, D, F), (D, F), (F, D))
        take_steps(Muon(weights, lr=0.02), 3)
        results.append(weights)
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


def small_model(tie_embeddings: bool = False) -> Transformer:
    """Every kind of parameter the system has."""
    config = ModelConfig(
        vocab_size=61,
        dim=32,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        qk_norm=True,
        num_experts=3,
        moe_min_expansion=2.0,
        moe_max_expansion=4.0,
        base_expansion=2.0,
        residual_mix="learned",
        use_mtp=True,
        tie_embeddings=tie_embeddings,
    )
    return seeded(0, config)


def treatment(model: nn.Module, config: TrainConfig) -> dict[str, tuple[str, float]]:
    """Each parameter's optimizer and decay; fails where one has none or two."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = [
        (names[parameter], (type(optimizer).__name__, group["weight_decay"]))
        for optimizer in build_optimizers(model, config)
        for group in optimizer.param_groups
        for parameter in group["params"]
    ]
    assert sorted(name for name, _ in found) == sorted(names.values())
    return dict(found)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_every_parameter_has_its_treatment(optimizer):
    found = treatment(small_model(), TrainConfig(optimizer=optimizer, weight_decay=0.1))
    hidden = ("Muon", 0.1) if optimizer == "muon" else ("AdamW", 0.1)
    expected = {
        "embedding.weight": ("AdamW", 0.0),
        "lm_head.weight": ("AdamW", 0.1),
        "norm.weight": ("AdamW", 0.0),
        "mtp.bias_OV": ("AdamW", 0.0),
        "mtp.moe.experts.w_up_EDF": hidden,
        "layers.0.attention.query.weight": hidden,
        "layers.0.attention.output.weight": hidden,
        "layers.1.attention_norm.weight": ("AdamW", 0.0),
        "layers.1.moe.router.weight_ED": ("AdamW", 0.1),
        "layers.1.moe.mix.weight": ("AdamW", 0.1),
        "layers.1.moe.base.up.weight": hidden,
        "layers.1.moe.experts.w_gate_EDF": hidden,
        "layers.1.moe.experts.w_down_EFD": hidden,
    }
    assert {name: found[name] for name in expected} == expected
    num_muon = sum(optimizer == "Muon" for optimizer, _ in found.values())
    assert num_muon == (2 * (4 + 3 + 3) + (3 + 3) if optimizer == "muon" else 0)  # attention, base, experts; MTP's


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_tied_embedding_appears_once(optimizer):
    found = treatment(small_model(tie_embeddings=True), TrainConfig(optimizer=optimizer))
    assert found["embedding.weight"] == ("AdamW", 0.0) and "lm_head.weight" not in found


def test_a_model_of_hidden_matrices_alone_needs_no_adamw():
    optimizers = build_optimizers(nn.Linear(5, 7, bias=False), TrainConfig(optimizer="muon"))
    assert [type(optimizer) for optimizer in optimizers] == [Muon]


def test_adamw_is_fused_and_says_so_where_it_cannot_be():
    (optimizer,) = build_optimizers(nn.Linear(5, 7), TrainConfig())
    assert all(group["fused"] for group in optimizer.param_groups)
    with pytest.warns(UserWarning, match="no fused one for meta"):
        (optimizer,) = build_optimizers(nn.Linear(5, 7, device="meta"), TrainConfig())
    assert not any(group["fused"] for group in optimizer.param_groups)


def test_learning_rate_reaches_every_group():
    optimizers = build_optimizers(small_model(), TrainConfig(optimizer="muon"))
    set_learning_rate(optimizers, 0.125)
    assert [group["lr"] for optimizer in optimizers for group in optimizer.param_groups] == [0.125] * 3


def train(model: Transformer, optimizers: list[torch.optim.Optimizer], steps: range) -> None:
    for step in steps:
        tokens_BL = torch.randint(61, (2, 20), generator=torch.Generator().manual_seed(step))
        model.loss(tokens_BL).total.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


@pytest.mark.parametrize("saved_after", [0, 3])
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_fresh_optimizer_continues_bit_identically(name, saved_after):
    config = TrainConfig(optimizer=name, lr=1e-2)
    model = small_model()
    optimizers = build_optimizers(model, config)
    train(model, optimizers, range(saved_after))
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    saved = {key: value.clone() for key, value in named_state(optimizers, model).items()}

    other = small_model()
    other.load_state_dict(weights)
    fresh = build_optimizers(other, config)
    load_named_state(fresh, other, saved)
    assert all(torch.equal(value, saved[key]) for key, value in named_state(fresh, other).items())

    train(model, optimizers, range(saved_after, saved_after + 3))
    train(other, fresh, range(saved_after, saved_after + 3))
    for (key, one), two in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two), key
    later, again = named_state(optimizers, model), named_state(fresh, other)
    assert later.keys() == again.keys() and all(torch.equal(later[key], again[key]) for key in later)


def test_reading_the_state_of_a_new_optimizer_changes_nothing():
    models = [small_model(), small_model()]
    for model, is_read in zip(models, [True, False], strict=True):
        optimizers = build_optimizers(model, TrainConfig(optimizer="muon", lr=1e-2))
        if is_read:
            named_state(optimizers, model)
        train(model, optimizers, range(2))
    assert all(torch.equal(*pair) for pair in zip(*(model.parameters() for model in models), strict=True))


def test_state_is_named_after_parameters_and_complete():
    model = small_model()
    state = named_state(build_optimizers(model, TrainConfig(optimizer="muon")), model)
    assert state["layers.0.moe.experts.w_up_EDF/momentum"].shape == (3, 32, 64)
    assert state["embedding.weight/exp_avg"].shape == state["embedding.weight/exp_avg_sq"].shape == (61, 32)
    assert state["embedding.weight/step"].shape == ()
    assert {name.rpartition("/")[0] for name in state} == {name for name, _ in model.named_parameters()}


def test_state_that_does_not_fit_is_refused_and_nothing_is_loaded():
    model = small_model()
    optimizers = build_optimizers(model, TrainConfig())
    train(model, optimizers, range(1))
    good = {key: value.clone() for key, value in named_state(optimizers, model).items()}
    name = "layers.1.moe.experts.w_up_EDF/exp_avg"
    bad = {
        r"missing: layers\.1.*w_up_EDF/exp_avg;": {key: torch.ones_like(value) for key, value in good.items() if key != name},
        r"missing: .*, .*, .* and \d+ more;": {},
        r"of no parameter: layers\.9.*/exp_avg;": good | {"layers.9.weight/exp_avg": torch.zeros(3)},
        r"exp_avg is \[3, 128, 32\] torch\.float32, not \[3, 32, 128\]": good | {name: good[name].mT},
        r"exp_avg is \[3, 32, 128\] torch\.bfloat16": good | {name: good[name].bfloat16()},
    }
    for message, tensors in bad.items():
        with pytest.raises(CheckpointError, match=message) as error:
            load_named_state(optimizers, model, tensors)
        assert "\n" not in str(error.value)
        assert all(torch.equal(value, good[key]) for key, value in named_state(optimizers, model).items())


def test_state_of_the_other_optimizer_is_refused():
    model = small_model()
    muon = named_state(build_optimizers(model, TrainConfig(optimizer="muon")), model)
    with pytest.raises(CheckpointError, match=r"train\.optimizer"):
        load_named_state(build_optimizers(model, TrainConfig()), model, muon)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_muon_agrees_with_float64_up_to_bfloat16_and_equal_experts_stay_equal():
    (weight,) = parameters((E, 128, 256))
    start, gradient = weight.detach().clone(), torch.randn(E, 128, 256)
    moved = nn.Parameter(weight.detach().cuda())
    moved.grad = gradient.cuda()
    Muon([moved], lr=0.02).step()
    expected = torch.stack([reference_muon(start[expert], [gradient[expert]], 0.02, 0.1) for expert in range(E)])
    assert (moved.cpu() - expected).norm() < 0.05 * (expected - start).norm()

    equal = nn.Parameter(start[:1].expand(E, -1, -1).cuda().contiguous())
    beside = nn.Parameter(start.cuda())
    optimizer = Muon([equal, beside], lr=0.02)
    for _ in range(3):
        equal.grad = torch.randn(1, 128, 256, device="cuda").expand_as(equal).contiguous()
        beside.grad = torch.randn(E, 128, 256, device="cuda")
        optimizer.step()
    assert torch.equal(equal, equal[:1].expand_as(equal))
