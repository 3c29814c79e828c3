"""Muon, compared with torch's Muon, with the formulas of the papers, and with itself on a GPU."""

import math

import pytest
import torch
from torch import Tensor, nn

from moebius.train.muon import UPDATE_RMS, Muon, orthogonalize

E, D, F = 3, 24, 40


def parameters(*shapes: tuple[int, ...]) -> list[nn.Parameter]:
    """Return random parameters, which are the same every time."""
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def random_tensor(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def take_steps(optimizer: torch.optim.Optimizer, count: int) -> None:
    """Take steps on gradients that depend only on the order and shapes of the parameters."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


def reference_muon(
    weight: Tensor, gradients: list[Tensor], lr: float, weight_decay: float, momentum: float = 0.95
) -> Tensor:
    """Return a matrix after steps of Muon, computed in float64 with the formulas of the papers."""
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
    gradients = [random_tensor(shape, seed) for seed in range(4)]
    optimizer = Muon([weight], lr=0.02, weight_decay=0.1)
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
    expected = reference_muon(start, gradients, lr=0.02, weight_decay=0.1)
    torch.testing.assert_close(weight.detach().double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(D, F), (F, D), (D, D)])
def test_muon_agrees_with_torchs_whose_products_are_bfloat16(shape):
    (weight,), (torchs_weight,) = parameters(shape), parameters(shape)
    start = weight.detach().clone()
    take_steps(Muon([weight], lr=0.02, weight_decay=0.1), 3)
    torchs = torch.optim.Muon(
        [torchs_weight], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"
    )
    take_steps(torchs, 3)
    assert (weight - torchs_weight).norm() < 0.02 * (torchs_weight - start).norm()


def test_experts_are_orthogonalized_one_by_one():
    (stacked,) = parameters((E, D, F))
    matrices = [nn.Parameter(matrix.clone()) for matrix in stacked.detach()]
    stacked_muon = Muon([stacked], lr=0.02)
    muons = [Muon([matrix], lr=0.02) for matrix in matrices]
    for seed in range(3):
        # The gradients have very different sizes; in one matrix, the largest would dominate.
        sizes = torch.tensor([1e-3, 1.0, 1e3])[:, None, None]
        gradient_EDF = random_tensor((E, D, F), seed) * sizes
        stacked.grad = gradient_EDF
        stacked_muon.step()
        for matrix, gradient_DF, muon in zip(matrices, gradient_EDF, muons, strict=True):
            matrix.grad = gradient_DF.clone()
            muon.step()
    expected = torch.stack([matrix.detach() for matrix in matrices])
    torch.testing.assert_close(stacked.detach(), expected, rtol=1e-6, atol=1e-6)


def test_batching_parameters_of_one_shape_changes_nothing():
    shapes = [(D, F), (E, D, F), (2, E, D, F), (F, D)]
    batched, separate = parameters(*shapes), parameters(*shapes)
    for seed, pair in enumerate(zip(batched, separate, strict=True)):
        for parameter in pair:
            parameter.grad = random_tensor(tuple(parameter.shape), seed)
    Muon(batched, lr=0.02).step()
    for parameter in separate:
        Muon([parameter], lr=0.02).step()
    for parameter, expected in zip(batched, separate, strict=True):
        torch.testing.assert_close(parameter, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(E, D, F), (E, F, D), (E, D, D)])
def test_orthogonalized_matrices_keep_their_singular_vectors_with_values_near_one(shape):
    matrices = random_tensor(shape, seed=0).double()
    u, before, v = torch.linalg.svd(matrices, full_matrices=False)
    after = u.mT @ orthogonalize(matrices) @ v.mT
    values = after.diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(after, torch.diag_embed(values), rtol=0, atol=1e-10)
    well_above_zero = before > 0.02 * before.square().sum(dim=-1, keepdim=True).sqrt()
    assert values[well_above_zero].min() > 0.6 and values.max() < 1.3


@pytest.mark.parametrize("size", [1e-6, 1e-3, 1e3, 1e6, 1e9])
def test_the_size_of_a_matrix_does_not_matter(size):
    """An expert that is hardly chosen has tiny gradients, and an unclipped one huge ones."""
    matrices = random_tensor((E, D, F), seed=0)
    torch.testing.assert_close(
        orthogonalize(matrices * size), orthogonalize(matrices), rtol=0, atol=1e-4
    )


def test_updates_have_adamws_size():
    (weight,) = parameters((64, 256))
    start = weight.detach().clone()
    take_steps(Muon([weight], lr=1.0, weight_decay=0.0), 1)
    size = (weight.detach() - start).square().mean().sqrt().item()
    assert size == pytest.approx(UPDATE_RMS, rel=0.25)


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


@pytest.mark.parametrize("found_inf", [1.0, torch.tensor(1.0)])
def test_a_step_that_is_to_be_skipped_changes_nothing(found_inf):
    (weight,) = parameters((E, D, F))
    optimizer = Muon([weight], lr=0.5, weight_decay=0.1)
    take_steps(optimizer, 1)
    start, momentum = weight.detach().clone(), optimizer.momentum_of(weight).clone()
    optimizer.found_inf = found_inf
    take_steps(optimizer, 1)
    assert torch.equal(weight, start)
    assert torch.equal(optimizer.momentum_of(weight), momentum)


def test_momentum_is_zero_before_the_first_gradient_and_a_mean_of_gradients_after_it():
    (weight,) = parameters((D, F))
    optimizer = Muon([weight], lr=0.5, momentum=0.75)
    assert not optimizer.momentum_of(weight).any()
    weight.grad = torch.full((D, F), 8.0)
    optimizer.step()
    torch.testing.assert_close(optimizer.momentum_of(weight), torch.full((D, F), 2.0))


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


@pytest.mark.gpu
def test_on_a_gpu_muon_agrees_with_float64_up_to_bfloat16():
    (weight,) = parameters((E, 128, 256))
    start, gradient = weight.detach().clone(), random_tensor((E, 128, 256), seed=1)
    on_gpu = nn.Parameter(start.cuda())
    on_gpu.grad = gradient.cuda()
    Muon([on_gpu], lr=0.02).step()
    expected = torch.stack(
        [reference_muon(start[expert], [gradient[expert]], 0.02, 0.1) for expert in range(E)]
    )
    assert (on_gpu.cpu() - expected).norm() < 0.05 * (expected - start).norm()


@pytest.mark.gpu
def test_on_a_gpu_equal_experts_stay_equal_beside_others():
    (weight,) = parameters((E, 128, 256))
    start = weight.detach()
    equal = nn.Parameter(start[:1].expand(E, -1, -1).cuda().contiguous())
    different = nn.Parameter(start.cuda())
    optimizer = Muon([equal, different], lr=0.02)
    for seed in range(3):
        shared = random_tensor((1, 128, 256), seed).cuda()
        equal.grad = shared.expand_as(equal).contiguous()
        different.grad = random_tensor((E, 128, 256), seed).cuda()
        optimizer.step()
    assert torch.equal(equal, equal[:1].expand_as(equal))
