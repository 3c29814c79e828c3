"""The founding document's own ways compute what Moebius's do, and tables say what could not be measured."""

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from moebius.config import Config, ModelConfig, TrainConfig
from moebius.model.attention import attend_native
from moebius.model.experts import ExpertWeights, loop
from moebius.model.router import softmax_topk
from tests.bench.conftest import BENCH

CPU = torch.device("cpu")
T, D, F, E = 37, 24, 40, 5


def test_repeated_heads_are_native(script):
    q, k, v = (torch.randn(2, heads, 19, 8, dtype=torch.float64) for heads in (6, 2, 2))
    torch.testing.assert_close(script("founding_layers").attend_repeated(q, k, v, None), attend_native(q, k, v, None))


@pytest.mark.parametrize("k", [1, 3])
def test_token_by_token_is_loop(script, k):
    routing = softmax_topk(torch.randn(T, E, dtype=torch.float64), k, renormalize=True)
    matrices = [torch.randn(shape, dtype=torch.float64) for shape in ((E, D, F), (E, D, F), (E, F, D))]
    weights = ExpertWeights(*matrices, activation="swiglu", dropout=0.0)
    x_TD = torch.randn(T, D, dtype=torch.float64)
    ours = script("founding_layers").token_by_token(x_TD, routing, weights)
    torch.testing.assert_close(ours, loop(x_TD, routing, weights))


def test_every_way_gathers_the_same_rows(script):
    layers = script("founding_layers")
    x_TD, expert_T = torch.randn(T, D), torch.randint(E - 1, (T,))
    expected = layers.by_index(x_TD, expert_T, E)
    assert expected.shape == (T, D)
    assert torch.equal(layers.by_mask(x_TD, expert_T, E), expected)
    assert torch.equal(layers.by_sorting(x_TD, expert_T, E), expected)


def test_rows_of_padding(script):
    layers = script("founding_layers")
    assert layers.padded_rows(37, 1) == 11 and layers.padded_rows(48, 1) == 0
    assert 0 < layers.padded_rows(1000, 64) < 15 * 64
    assert (1000 + layers.padded_rows(1000, 64)) % 16 == 0


def test_a_contender_that_fails_is_a_row_that_says_so(script):
    def too_large() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    found = script("interleaved").functions_in_turns({"fits": lambda: None, "large": too_large}, CPU, rounds=3)
    assert found["large"].error == "out of memory" and found["large"].over(found["fits"]) == ""
    assert len(found["fits"].seconds) == 3 and not found["fits"].error
    layer = script("founding_layers").Layer(found["large"], found["large"])
    fits = script("founding_layers").Layer(found["fits"], found["fits"])
    rows = list(script("founding_tables")._layer_rows("", {"large": layer, "fits": fits}, "fits"))
    assert rows[2].startswith("| large | out of memory |  |")


def test_a_model_that_cannot_start_says_why(script):
    said = script("interleaved_models")._start(Config(train=TrainConfig(device="cuda:99")))
    assert said.startswith("ConfigError: train.device='cuda:99'")


def test_models_take_turns(script):
    model = ModelConfig(
        vocab_size=64, dim=16, num_layers=1, num_heads=2, num_kv_heads=1, moe_min_expansion=4, moe_max_expansion=4
    )
    config = Config(model=model, train=TrainConfig(device="cpu", batch_size=4, seq_len=16))
    (found,) = script("interleaved_models").models_in_turns({"small": config}, rounds=6).values()
    assert found.config.train.micro_batch_size == 4
    assert 0 < min(found.forward.seconds) < min(found.step.seconds) and len(found.step.seconds) == 6
    assert found.tokens_per_second == pytest.approx(64 / found.step.ms * 1e3)


def test_work_goes_on_side_by_side_while_it_fits(script):
    admission = script("interleaved_models")._Admission(10.0)
    most: list[int] = []

    def work(need: float) -> None:
        with admission.of(need):
            most.append(admission.working)
            time.sleep(0.02)

    def at_once(*needs: float) -> int:
        most.clear()
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(work, needs))
        return max(most)

    assert at_once(5, 5) == 2 and at_once(6, 6) == 1 and at_once(11, 1) == 1


def test_ratios_are_turn_by_turn(script):
    timed = script("interleaved").Timed
    assert timed([2.0, 4.0, 9.0]).over(timed([1.0, 2.0, 3.0])) == "2.00 (2.00 to 3.00)"
    assert timed([0.002, 0.004, 0.003]).ms == pytest.approx(3.0)


def test_the_tables_of_layers(script, capsys, monkeypatch):
    monkeypatch.setattr(
        sys, "argv", ["founding_tables.py", "--device", "cpu", "--only", "gqa", "experts", "indexing", "padding"]
    )
    script("founding_tables").main()
    out = capsys.readouterr().out
    assert f"torch {torch.__version__}" in out
    for row in (
        "| repeat_interleave, eager |",
        "| token by token,",
        "| loop, one GEMM an expert |",
        "| x[mask] |",
        "| 32,768 |",
    ):
        assert row in out
    assert "Error" not in out


def test_what_a_run_learned(script, small):
    shares, variation, bits = script("founding_tables")._learned(
        replace(small, train=replace(small.train, steps=6, device="cpu"))
    )
    assert sum(map(float, shares.split())) == pytest.approx(100, abs=0.2) and len(shares.split()) == 3
    assert 0 <= float(variation) < 2**0.5 and 0 < float(bits) < 9


def test_the_document_is_quoted_as_it_is(script):
    tables = script("founding_tables")
    text = (BENCH.parent / "docs" / "founding.md").read_text()
    quoted = [f"{value}ms" for value in tables.DOCUMENT_MS.values()] + [f"CV: {tables.DOCUMENT_CV}", tables.DOCUMENT_GOAL[2:]]
    quoted += [share + "%" for share in tables.DOCUMENT_LOADS.split()]
    for told in tables.DOCUMENT_SUMMARY.values():
        quoted += told
    assert all(figure in text for figure in quoted)
    assert set(tables.SUMMARY | tables.RECOMMENDED) == set(tables.DOCUMENT_SUMMARY)
