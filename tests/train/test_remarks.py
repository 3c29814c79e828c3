"""The summary remarks on settings that were perhaps not meant, and on nothing else."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from moebius.config import Config
from moebius.config.presets import preset
from moebius.data.stream import Part
from moebius.train.remarks import remarks

TINY = preset("tiny")  # 400 steps of 8 x 256 tokens, a vocabulary of 2,048


def corpus_of(size: int = 2048, *parts: tuple[int, float]) -> Any:
    """Return a corpus of sources with these numbers of training tokens and weights."""
    streams, start = [], 0
    for tokens, weight in parts or ((10**7, 1.0),):
        streams.append(Part(start, start + tokens, tokens, weight))
        start += tokens
    return SimpleNamespace(
        tokenizer=SimpleNamespace(size=size), train=SimpleNamespace(parts=streams)
    )


def remarked(config: Config = TINY, corpus: Any = None) -> dict[str, str]:
    return dict(remarks(config, corpus or corpus_of()))


def test_there_is_nothing_to_remark_on_a_usual_run():
    assert remarked() == {}


@pytest.mark.parametrize(("size", "unused"), [(257, 1791), (1920, 128), (1921, 0), (2048, 0)])
def test_many_ids_that_no_text_can_have(size, unused):
    text = remarked(corpus=corpus_of(size)).get("vocabulary", "")
    assert bool(text) == bool(unused)
    if unused:
        assert text == (
            f"the tokenizer has {size:,} ids: {unused:,} of the model's 2,048 are never used; "
            f"--model.vocab_size {size} would do"
        )


def test_epochs_over_a_small_text():
    def epochs(*parts: tuple[int, float]) -> str | None:
        return remarked(corpus=corpus_of(2048, *parts)).get("epochs")

    tokens = 400 * 8 * 256
    assert epochs((tokens, 1.0)) is None
    assert epochs((tokens // 2, 1.0)) == "the run reads the text 2.0 times"
    assert epochs((tokens // 34, 1.0)) == (
        "the run reads the text 34.0 times; repeating it more than 4 times gains little"
    )
    assert epochs((tokens, 1.0), (tokens // 12, 3.0)) == (
        "the run reads source 2 of data.source 9.0 times; repeating it more than 4 times gains "
        "little"
    )


@pytest.mark.parametrize(("warmup", "highest"), [(400, "0.006"), (800, "0.003"), (399, "")])
def test_a_warm_up_that_does_not_end(warmup, highest):
    train = replace(TINY.train, warmup_steps=warmup)
    text = remarked(replace(TINY, train=train)).get("warm-up", "")
    assert bool(text) == bool(highest)
    if highest:
        assert text == (
            f"train.warmup_steps={warmup} is not below the run's 400 steps: the learning rate "
            f"rises to {highest} and never decays (train.lr=0.006)"
        )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"aux_loss_scope": "micro_batch"}, "is balanced on its own"),
        ({"aux_loss_scope": "global_batch"}, "is balanced over those up to it"),
        ({"aux_loss_scope": "sequence"}, ""),
        ({"aux_loss_coeff": 0.0}, ""),
        (
            {"router_type": "switch", "router_top_k": 1},
            "is balanced on its own and has an expert capacity of its own",
        ),
        (
            {"router_type": "switch", "router_top_k": 1, "aux_loss_coeff": 0.0},
            "has an expert capacity of its own",
        ),
        ({"num_experts": 0, "base_expansion": 1.0}, ""),
    ],
)
def test_what_depends_on_the_micro_batches(changes, expected):
    model = replace(TINY.model, **changes)
    whole = replace(TINY, model=model)
    parts = replace(whole, train=replace(TINY.train, micro_batch_size=2))
    assert "micro-batches" not in remarked(whole)
    text = remarked(parts).get("micro-batches", "")
    rest = "; nothing else depends on train.micro_batch_size"
    assert text == (f"each of the step's 4 {expected}{rest}" if expected else "")


def test_epochs_are_counted_over_all_phases():
    phases: Any = ({"until": 1000, "weights": (1, 0)}, {"until": 3000, "weights": (1, 3)})
    data = replace(TINY.data, source="a,b")
    config = replace(TINY, data=data, train=replace(TINY.train, phases=phases))
    text = remarked(config, corpus_of(2048, (10**7, 1.0), (1000, 1.0)))["epochs"]
    assert text == "the run reads source 2 of data.source 1.5 times"
    text = remarked(config, corpus_of(2048, (500, 1.0), (10**7, 1.0)))["epochs"]
    assert text == "the run reads source 1 of data.source 3.0 times"
