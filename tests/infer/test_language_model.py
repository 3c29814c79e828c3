"""A run as a language model in Python."""

from dataclasses import replace

import pytest
import torch

import moebius
from moebius.config import Config
from moebius.config.presets import tiny
from moebius.errors import CheckpointError, ConfigError
from moebius.infer.language_model import convert_products, new_model, without_drops
from moebius.model.transformer import Transformer
from tests.cli.conftest import trained

__all__ = ["trained"]  # a fixture
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(trained) -> moebius.LanguageModel:
    return moebius.load(trained / "runs" / "run", device="cpu")


def test_text_in_python(model):
    text = model.generate("line", max_tokens=12, seed=3)
    assert text == "".join(model.stream("line", max_tokens=12, seed=3))
    assert model.step == 10 and model.context == 32
    assert model.generate("line", max_tokens=12, seed=4) != text
    assert model.generate("line", max_tokens=0) == ""
    stopped = model.generate("line", max_tokens=12, seed=3, stop=text[4])
    assert stopped == text[: text.index(text[4])]


def test_many_texts_in_python(model):
    many = model.generate_all(["line", "", "li"], num=2, num_at_once=4, max_tokens=9)
    assert [len(texts) for texts in many] == [2, 2, 2]
    assert many[0][0] == model.generate("line", max_tokens=9)
    assert model.generate_all([]) == []


def test_what_is_refused(model, trained, tmp_path):
    with pytest.raises(ConfigError, match="top_p=2"):
        model.generate("a", top_p=2)
    with pytest.raises(ConfigError, match="speculate"):
        model.generate("a", speculate=True)
    with pytest.raises(ConfigError, match="max_new_tokens: no such option; did you mean max_tok"):
        model.generate("a", max_new_tokens=3)
    for count in (0, -1):
        with pytest.raises(ConfigError, match=f"num_at_once={count}: must be at least 1"):
            model.generate_all(["a"], num_at_once=count, max_tokens=3)
    with pytest.raises(ConfigError, match="not a run directory"):
        moebius.load(tmp_path)
    with pytest.raises(CheckpointError, match="no checkpoint of step 3"):
        moebius.load(trained / "runs" / "run", step=3)
    assert moebius.load(trained / "runs" / "run", step=8, device="cpu").step == 8


def test_a_note_only_on_prompts_beyond_the_context(model):
    assert model.note_on_length(model.encoded(["x" * 31, ""])) == ""
    assert model.note_on_length([]) == ""
    assert "the longest prompt has 41 tokens" in model.note_on_length(
        model.encoded(["x" * 40, ""])
    )


@pytest.mark.parametrize("counts", [4, (3, 8)])
def test_no_router_drops_tokens(counts):
    shape = replace(tiny().model, num_layers=2, num_experts=counts, router_top_k=1)
    assert without_drops(shape) == shape
    switch = without_drops(replace(shape, router_type="switch"))
    model = Transformer(switch).eval()
    tokens_BS = torch.zeros(2, 50, dtype=torch.long)  # all of them choose the same expert
    for stats in model(tokens_BS).stats:
        assert stats.dropped == 0 and stats.tokens_per_expert_E.max() == 100


@pytest.mark.parametrize("tied", [False, True])
def test_converted_products_are_those_of_autocast_to_the_last_bit(tied):
    shape = replace(tiny().model, base_expansion=1.0, residual_mix="learned", tie_embeddings=tied)
    config = Config(model=replace(shape, use_mtp=True, qk_norm=True))
    torch.manual_seed(0)
    model = new_model(config, CPU)
    tokens_BS = torch.randint(2048, (2, 9))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        before = model(tokens_BS).logits_BSV
        convert_products(model, torch.bfloat16)
        assert torch.equal(model(tokens_BS).logits_BSV, before)
    assert model.embedding.weight.dtype == torch.float32
    assert model.lm_head.weight.dtype == torch.bfloat16
    assert model.layers[0].moe.router.weight_ED.dtype == torch.float32  # pyright: ignore
