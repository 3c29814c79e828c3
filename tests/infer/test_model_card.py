"""What a model card says of where a model comes from and of its data."""

from dataclasses import replace

from moebius.config import Config, DataConfig, TrainConfig
from moebius.cost.exports import holder
from moebius.infer.model_card import Origin, Verified, card
from moebius.infer.stock_check import Difference
from moebius.infer.stock_shape import StockShape
from moebius.train.origin import Origin as Beginning

SAME = Difference(1e-7, 100, 0)


def card_of(config: Config, begun: Beginning | None = None) -> str:
    architecture = holder(config.model).architecture
    assert architecture is not None
    origin = Origin("mine", config, (10,), [], 64, begun)
    verified = Verified(SAME, SAME, "held-out text", "5.0")
    return card(origin, StockShape(config.model, architecture), verified, "float32", "")


def test_a_run_with_new_weights_was_pretrained():
    assert "A language model that was pretrained with Moebius.\n" in card_of(Config())


def test_a_branch_names_the_run_and_the_step():
    text = card_of(Config(), Beginning("branched", "/home/me/runs/first", 2000))
    assert "branched from step 2,000 of the run `first`." in text and "/home" not in text


def test_an_imported_model_is_not_claimed_to_be_our_own():
    """Its license binds what was made from it."""
    text = card_of(Config(), Beginning("imported", "/models/theirs"))
    assert "pretrained with Moebius" not in text and "those of the model `theirs`" in text
    assert "license and terms of use may apply" in text
    upcycled = Beginning("imported", "/models/theirs", upcycled="num_experts=8")
    assert "made a mixture of experts (`num_experts=8`)" in card_of(Config(), upcycled)


def test_the_mixtures_of_sources_and_phases():
    data = DataConfig(source="a,b", weights=(0.9, 0.1))
    phases = ({"until": 1000}, {"until": 2000, "weights": (1, 2)})
    train = replace(TrainConfig(batch_size=1, seq_len=10), phases=phases)  # pyright: ignore
    text = card_of(Config(data=data, train=train))
    assert "Source: `a,b`, mixed 0.9 to 0.1; tokenizer" in text
    assert "- phase 1, up to 1,000 tokens\n- phase 2, up to 2,000 tokens, mixed 1 to 2" in text
