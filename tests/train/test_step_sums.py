"""A step's losses and gradients are sums over all of its tokens that are divided once."""

from typing import Any

import pytest
import torch
from torch import Tensor

from moebius.config import ModelConfig, ParallelConfig, TrainConfig
from moebius.hardware.backends import choose_backends
from moebius.model.transformer import lookahead, seeded
from moebius.train import step
from moebius.train.state import TrainState
from moebius.train.step import StepResult, train_step
from tests.train.test_step import config_of

S, V, END = 16, 61, 0
LENGTHS = ((99,), (1,), (2, 3), (12, 1, 1, 1), (1, 2), (5, 7, 30))
"""Lengths of each sequence's documents, repeated to its end. Some offsets have no targets."""
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"aux_loss_coeff": 0.0},
    "MTP and z-loss": {"use_mtp": True, "router_z_loss_coeff": 0.5, "aux_loss_coeff": 0.0},
    "balance over sequences, tied": {
        "use_mtp": True,
        "aux_loss_scope": "sequence",
        "aux_loss_coeff": 3.0,
        "tie_embeddings": True,
        "residual_mix": "learned",
        "router_top_k": 2,
    },
    "sigmoid": {
        "router_type": "sigmoid",
        "use_mtp": True,
        "aux_loss_scope": "sequence",
        "router_z_loss_coeff": 0.5,
    },
    "dense": {"num_experts": 0, "use_mtp": True},
}


def tokens_of(model: ModelConfig, lengths: tuple[tuple[int, ...], ...] = LENGTHS) -> Tensor:
    """Return a batch of random tokens whose documents have these lengths."""
    size = (len(lengths), S + lookahead(model))
    tokens_BL = torch.randint(1, V, size, generator=torch.Generator().manual_seed(1))
    for row, of_row in zip(tokens_BL, lengths, strict=True):
        start = 0
        while start < len(row):
            for length in of_row:
                row[start : start + 1] = END
                start += length
    return tokens_BL


def stepped(
    monkeypatch,
    micro_batch: int,
    chunks: int = 1,
    separator: int | None = END,
    lengths: tuple[tuple[int, ...], ...] = LENGTHS,
    **changes: Any,
) -> tuple[StepResult, dict[str, Tensor]]:
    """Return the measurements and the gradients of a first step in float64."""
    settings = {"batch_size": len(lengths), "micro_batch_size": micro_batch, "grad_clip": 0.0}
    config = config_of(train=settings, **changes)
    model = seeded(0, config.model, choose_backends(ParallelConfig(loss_chunks=chunks))).double()
    gradients: dict[str, Tensor] = {}
    original = step.router_grad_norms

    def noted(model, placement) -> Tensor | None:
        for name, parameter in model.named_parameters():
            gradients[name] = parameter.grad.clone()
        return original(model, placement)

    monkeypatch.setattr(step, "router_grad_norms", noted)
    state = TrainState.new(model, config)
    result = train_step(state, tokens_of(config.model, lengths), separator, config.train)
    monkeypatch.undo()
    return result, gradients


def assert_same(
    first: tuple[StepResult, dict[str, Tensor]], second: tuple[StepResult, dict[str, Tensor]]
) -> None:
    """Compare to 1e-10 of the largest entry. Balance losses over other scopes may differ."""
    for name in ("loss", "mtp_loss", "mtp_loss_O", "z_loss_M", "grad_norm"):
        expected, value = getattr(first[0], name), getattr(second[0], name)
        assert (expected is None) == (value is None), name
        if expected is not None:
            assert expected.dtype == torch.float64, name
            torch.testing.assert_close(value, expected, rtol=1e-10, atol=0, equal_nan=True)
    assert first[1].keys() == second[1].keys()
    for name, gradient in first[1].items():
        assert gradient.dtype == torch.float64, name
        assert (gradient - second[1][name]).abs().max() <= 1e-10 * gradient.abs().max(), name


@pytest.mark.parametrize("separator", [END, None])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_step_does_not_depend_on_the_micro_batch_size(monkeypatch, variant, separator):
    def run(micro_batch: int, chunks: int) -> tuple[StepResult, dict[str, Tensor]]:
        settings: Any = VARIANTS[variant]
        return stepped(monkeypatch, micro_batch, chunks, separator, **settings)

    whole = run(len(LENGTHS), 1)
    assert whole[0].loss.isfinite() and not whole[0].is_skipped
    for micro_batch, chunks in ((len(LENGTHS), 4), (1, 1), (1, 3), (2, 2), (3, 1)):
        assert_same(whole, run(micro_batch, chunks))


def test_the_mean_of_micro_batches_means_would_be_another_loss(monkeypatch):
    """The micro-batches of the tests above really have different numbers of targets."""
    changes: Any = {"use_mtp": True, "aux_loss_coeff": 0.0}
    apart = [
        stepped(monkeypatch, 1, lengths=(lengths,), **changes)[0].mtp_loss for lengths in LENGTHS
    ]
    whole = stepped(monkeypatch, 1, **changes)[0].mtp_loss
    assert whole is not None
    mean = sum(loss for loss in apart if loss is not None) / len(apart)
    assert abs(mean - whole) > 0.01 * whole


@pytest.mark.parametrize("chunks", [1, 2])
@pytest.mark.parametrize("micro_batch", [1, 4])
def test_an_offset_without_a_target_adds_nothing(monkeypatch, micro_batch, chunks):
    """In documents of one token, the only target of each is the separator that ends it."""
    result, gradients = stepped(
        monkeypatch, micro_batch, chunks, lengths=((1,),) * 4, use_mtp=True, aux_loss_coeff=0.0
    )
    assert result.mtp_loss == 0 < result.loss and not result.is_skipped
    assert result.mtp_loss_O is not None and result.mtp_loss_O.isnan().all()
    assert not gradients["mtp.bias_OV"].any() and gradients["lm_head.weight"].any()
    assert all(gradient.isfinite().all() for gradient in gradients.values())

    # Documents of two tokens have targets two tokens ahead, but none further on.
    result, gradients = stepped(
        monkeypatch, micro_batch, chunks, lengths=((2,),) * 4, use_mtp=True, aux_loss_coeff=0.0
    )
    assert result.mtp_loss_O is not None and result.mtp_loss is not None
    assert result.mtp_loss_O.isnan().tolist() == [False, True, True]
    torch.testing.assert_close(result.mtp_loss, result.mtp_loss_O[0] / 3)
    assert gradients["mtp.bias_OV"].any(dim=1).tolist() == [True, False, False]


def test_the_counts_are_known_from_the_token_ids():
    config = config_of(use_mtp=True).model
    counts = step.divisors_of(tokens_of(config, ((99,), (1,), (2,))), END, config)
    assert counts.targets_O.tolist() == [3 * S, S + S // 2, S, S]
    assert counts.sequences == 3
    crossing = step.divisors_of(tokens_of(config), None, config)
    assert crossing.targets_O.tolist() == [len(LENGTHS) * S] * 4


def test_a_batch_that_micro_batches_do_not_divide_is_weighed_by_sequences(monkeypatch):
    """Another launcher may hand a process fewer rows than the configuration's batch has."""
    changes: Any = {"aux_loss_scope": "sequence", "router_z_loss_coeff": 0.5}
    whole = stepped(monkeypatch, len(LENGTHS), **changes)
    config = config_of(train={"batch_size": 4, "micro_batch_size": 1, "grad_clip": 0}, **changes)
    assert isinstance(config.train, TrainConfig)
    state = TrainState.new(seeded(0, config.model).double(), config)
    uneven = train_step(state, tokens_of(config.model), END, config.train)  # 6 rows in 3 parts
    torch.testing.assert_close(uneven.balance_loss_M, whole[0].balance_loss_M, rtol=1e-10, atol=0)
    torch.testing.assert_close(uneven.grad_norm, whole[0].grad_norm, rtol=1e-10, atol=0)
