"""The loss that is computed in parts equals the loss of all logits at once, with all gradients."""

from typing import Any

import pytest
import torch

from moebius.config import ParallelConfig
from moebius.hardware.backends import choose_backends
from moebius.model import head
from moebius.model.head import head_cross_entropy, head_token_losses, part_of_loss
from moebius.model.loss import IGNORED
from moebius.model.transformer import Transformer, seeded
from tests.model.tiny import B, D, S, V, random_tokens, tiny


def inputs(
    dtype: torch.dtype = torch.float32, device: str = "cpu", batch: int = B
) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((batch, S, D), (V, D), (V,))
    return [
        torch.randn(shape, generator=generator).to(device, dtype).requires_grad_()
        for shape in shapes
    ]


def targets(batch: int = B) -> torch.Tensor:
    target_BS = torch.randint(0, V, (batch, S), generator=torch.Generator().manual_seed(1))
    return target_BS.masked_fill(target_BS % 5 == 0, IGNORED)


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("chunks", [2, 3, 14])
def test_loss_and_gradients(chunks, has_bias):
    results = []
    for count in (1, chunks):
        hidden_BSD, weight_VD, bias_V = inputs()
        bias = bias_V if has_bias else None
        loss = head_cross_entropy(hidden_BSD, weight_VD, targets(), bias, count)
        (3 * loss).backward()
        gradients = [hidden_BSD.grad, weight_VD.grad, *([bias_V.grad] if has_bias else [])]
        results.append([loss.detach(), *gradients])
    for at_once, part_by_part in zip(*results, strict=True):
        assert torch.allclose(part_by_part, at_once, rtol=1e-4, atol=1e-6)


def test_more_chunks_than_tokens():
    hidden_BSD, weight_VD, _ = inputs()
    assert torch.allclose(
        head_cross_entropy(hidden_BSD, weight_VD, targets(), chunks=1000),
        head_cross_entropy(hidden_BSD, weight_VD, targets()),
    )


def test_a_chunk_without_a_target_adds_nothing():
    target_BS = targets()
    target_BS[0] = IGNORED
    for chunks in (1, 2):
        hidden_BSD, weight_VD, _ = inputs()
        head_cross_entropy(hidden_BSD, weight_VD, target_BS, chunks=chunks).backward()
        assert hidden_BSD.grad is not None
        assert hidden_BSD.grad[0].abs().sum() == 0 < hidden_BSD.grad[1].abs().sum()


def test_no_gradients_are_computed_under_no_grad():
    hidden_BSD, weight_VD, bias_V = inputs()
    with torch.no_grad():
        loss = head_cross_entropy(hidden_BSD, weight_VD, targets(), bias_V, chunks=3)
    assert not loss.requires_grad


@pytest.mark.parametrize("target", [-1, -99, -101, V, V + 7])
@pytest.mark.parametrize("chunks", [1, 2, 14])
def test_a_target_that_is_no_id_is_an_error_however_the_loss_is_computed(chunks, target):
    hidden_BSD, weight_VD, _ = inputs()
    target_BS = targets()
    target_BS[1, 2] = target
    for context in (torch.enable_grad(), torch.no_grad()):
        with context, pytest.raises(IndexError, match=f"Target {target} is out of bounds"):
            head_cross_entropy(hidden_BSD, weight_VD, target_BS, chunks=chunks)


@pytest.mark.parametrize("chunks", [1, 3])
def test_without_any_target_the_loss_is_zero(chunks):
    hidden_BSD, weight_VD, _ = inputs()
    nothing_BS = torch.full((B, S), IGNORED)
    loss = head_cross_entropy(hidden_BSD, weight_VD, nothing_BS, chunks=chunks)
    loss.backward()
    assert loss == 0 and hidden_BSD.grad is not None and not hidden_BSD.grad.any()


@pytest.mark.parametrize("chunks", [1, 3])
def test_the_sum_is_divided_by_the_number_that_is_given(chunks):
    hidden_BSD, weight_VD, bias_V = inputs(torch.float64)
    arguments: Any = (hidden_BSD, weight_VD, targets(), bias_V, chunks)
    mean = head_cross_entropy(*arguments)
    part = head_cross_entropy(*arguments, num_targets=torch.tensor(100))
    assert mean.dtype == torch.float64
    torch.testing.assert_close(100 * part, (targets() != IGNORED).sum() * mean)
    (gradient_VD,) = torch.autograd.grad(part, weight_VD)
    (expected_VD,) = torch.autograd.grad(mean, weight_VD)
    torch.testing.assert_close(100 * gradient_VD, (targets() != IGNORED).sum() * expected_VD)


def model_loss(
    chunks: int, compiled: bool = False, tied: bool = False
) -> tuple[torch.Tensor, Transformer]:
    config = tiny(use_mtp=True, tie_embeddings=tied)
    model = seeded(0, config, choose_backends(ParallelConfig(loss_chunks=chunks)))
    if compiled:
        torch._dynamo.reset()
        model.loss_part = torch.compile(model.loss_part, fullgraph=True)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.loss(random_tokens(config)).total
    loss.backward()
    return loss.detach(), model


@pytest.mark.parametrize("tied", [False, True])
def test_a_whole_model_in_bfloat16_with_all_its_heads(tied):
    at_once, whole = model_loss(1, tied=tied)
    part_by_part, parts = model_loss(3, tied=tied)
    assert torch.allclose(at_once, part_by_part, rtol=1e-3)
    pairs = zip(parts.named_parameters(), whole.parameters(), strict=True)
    for (name, parameter), expected in pairs:
        assert parameter.grad is not None and expected.grad is not None, name
        assert parameter.grad.dtype == torch.float32
        assert (parameter.grad - expected.grad).norm() <= 0.03 * expected.grad.norm(), name


def test_it_compiles_without_a_break():
    eager, compiled = model_loss(3)[0], model_loss(3, compiled=True)[0]
    assert torch.allclose(eager, compiled, rtol=1e-3)


@pytest.mark.gpu
def test_the_logits_never_all_exist_at_once():
    peaks = []
    for chunks in (1, 16):
        hidden_BSD = torch.randn(
            4, 2048, 256, device="cuda", dtype=torch.bfloat16, requires_grad=True
        )
        weight_VD = torch.randn(
            32768, 256, device="cuda", dtype=torch.bfloat16, requires_grad=True
        )
        target_BS = torch.randint(0, 32768, (4, 2048), device="cuda")
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run = torch.compile(head_cross_entropy) if chunks == 1 else head_cross_entropy
        run(hidden_BSD, weight_VD, target_BS, None, chunks, torch.compile(part_of_loss)).backward()
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[1] < peaks[0] / 3


@pytest.mark.parametrize("chunks", [15, 2**31, 2**63 - 1])
def test_more_parts_than_tokens_are_as_many_as_there_are(chunks):
    hidden_BSD, weight_VD, bias_V = inputs(torch.float64)
    whole = head_cross_entropy(hidden_BSD, weight_VD, targets(), bias_V)
    in_parts = head_cross_entropy(hidden_BSD, weight_VD, targets(), bias_V, chunks=chunks)
    torch.testing.assert_close(in_parts, whole)


@pytest.mark.parametrize("most_logits", [1, 50, 10**6])
def test_the_loss_of_each_token(most_logits, monkeypatch):
    monkeypatch.setattr(head, "MOST_LOGITS", most_logits)
    torch.manual_seed(0)
    hidden_BSD, weight_VD = torch.randn(2, 5, 3), torch.randn(7, 3)
    target_BS = torch.randint(7, (2, 5))
    target_BS[1, 2:] = IGNORED
    nats_BS = head_token_losses(hidden_BSD, weight_VD, target_BS)
    log_probs_BSV = (hidden_BSD @ weight_VD.T).log_softmax(dim=-1)
    for place, target in enumerate(target_BS.flatten().tolist()):
        expected = 0.0 if target == IGNORED else -log_probs_BSV.flatten(0, 1)[place, target]
        assert nats_BS.flatten()[place] == pytest.approx(float(expected), rel=1e-5)
    mean = head_cross_entropy(hidden_BSD, weight_VD, target_BS)
    assert nats_BS.sum() / 7 == pytest.approx(mean.item(), rel=1e-5)
