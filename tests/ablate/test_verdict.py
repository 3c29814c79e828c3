"""Tests of the verdict's sentences, on made-up figures."""

from dataclasses import replace

import pytest

from moebius.ablate.variants import Variant
from moebius.ablate.verdict import comparable, place, verdict
from moebius.config import DataConfig
from tests.ablate.configurations import TWIN, ablation, outcome

BITS = ((2, 1.5), (4, 1.2), (8, 1.0))


def moved(*gaps: float) -> list[tuple[int, float]]:
    """Return the curve BITS with each of its values shifted by one of the gaps."""
    return [(step, bits + gap) for (step, bits), gap in zip(BITS, gaps, strict=True)]


def test_nothing_is_said_of_one_variant():
    assert verdict(ablation(outcome("alone", [1.0]))) == []


@pytest.mark.parametrize(
    ("rounds", "sentence"),
    [
        ([2.0, 2.2], "`a`: 2.10 (2.00 to 2.20) times the tokens/s of `b`"),
        (
            [0.9, 1.3],
            "`a` and `b` cannot be told apart: the ratio of their tokens/s is 1.10 (0.90 to 1.30)",
        ),
    ],
)
def test_the_fastest(rounds, sentence):
    sentences = verdict(ablation(outcome("a", [1.0, 1.0]), outcome("b", rounds)))
    assert sentences == [("fastest", sentence)]


def test_times_that_cannot_be_trusted_decide_nothing():
    a = outcome("a", [1.0], turns=[1.0], curves=[BITS])
    b = outcome("b", [2.0], turns=[2.0], curves=[moved(-0.1, -0.1, -0.1)])
    b.crowding = "others are using the processor"
    said = verdict(ablation(a, b))
    assert [title for title, _ in said] == ["fastest", "equal tokens"]
    assert said[0][1] == "no verdict, because these times cannot be trusted (see WARNING)"


def test_who_learns_best_at_equal_tokens_and_at_equal_time():
    """`b` learns more from each token and takes twice as long for it."""
    a = outcome("a", [1.0], turns=[1.0], curves=[BITS])
    b = outcome("b", [2.0], turns=[2.0], curves=[moved(-0.1, -0.1, -0.1)])
    said = dict(verdict(ablation(a, b)))
    one_seed = "(one seed, so no spread; --seeds 3 shows one)"
    assert said["equal tokens"] == (
        f"after 1,600 tokens `b` is best, ahead of `a` by 0.1000 bits per byte {one_seed}"
    )
    assert said["equal time"].startswith("after 8 s `a` is best, ahead of `b` by 0.1000 bits")


def test_seeds_that_disagree_leave_it_open():
    a = outcome("a", turns=[1.0], curves=[BITS, BITS])
    b = outcome("b", turns=[1.0], curves=[moved(0, 0, 0.3), moved(0, 0, -0.1)])
    assert dict(verdict(ablation(a, b)))["equal tokens"] == (
        "after 1,600 tokens `a` and `b` cannot be told apart: they differ by +0.1000 bits per "
        "byte (-0.1000 to +0.3000 over 2 seeds)"
    )


@pytest.mark.parametrize(
    ("gaps", "sentence"),
    [
        ((0.1, 0.1, 0.1), "not within 1,600 tokens"),
        ((0.1, -0.1, -0.1), "ahead from 600 tokens on, up to 1,600 tokens"),
        (
            (-0.1, -0.1, -0.1),
            "ahead at the first evaluation, 400 tokens, and at every later one up to 1,600 tokens",
        ),
    ],
)
def test_where_a_mixture_overtakes_its_twin(gaps, sentence):
    twin = outcome(turns=[1.0], curves=[BITS], variant=TWIN)
    mixture = outcome("mixture", turns=[1.0], curves=[moved(*gaps)])
    sentences = [text for title, text in verdict(ablation(mixture, twin)) if title == "break-even"]
    assert sentences[0] == f"`mixture` against its twin: {sentence}"


@pytest.mark.parametrize(
    ("gap", "judgment"), [(-0.1, "it earns its compute"), (0.1, "waste"), (0.0, "undecided")]
)
def test_a_base_mlp_on_top_is_judged_by_time(gap, judgment):
    plain = outcome("plain", turns=[1.0], curves=[BITS])
    base = outcome("base", turns=[1.0], curves=[moved(0, 0, gap)], base_expansion=1)
    said = dict(verdict(ablation(plain, base)))["base MLP"]
    assert said.startswith("comes on top. `base` against `plain`: +")
    assert "after 8 s" in said and said.endswith(judgment)


def test_a_base_mlp_that_shares_the_compute_is_judged_by_tokens():
    plain = outcome("plain", turns=[1.0], curves=[BITS])
    base = outcome(
        "base",
        turns=[1.0],
        curves=[moved(0, 0, -0.1)],
        base_expansion=1,
        moe_min_expansion=3,
        moe_max_expansion=3,
    )
    said = dict(verdict(ablation(plain, base)))["base MLP"]
    assert said.startswith("shares the compute. `base` against `plain`: +0.0% active parameters")
    assert "after 1,600 tokens" in said and said.endswith("the split pays")


@pytest.mark.parametrize(
    ("width", "gap", "judgment"),
    [
        (2.5, -0.1, "the split pays"),  # although it has less compute
        (2.5, 0.1, "undecided, because the compute is not equal"),
        (3.5, -0.1, "undecided, because the compute is not equal"),
        (3.5, 0.1, "it does not pay"),  # although it has more compute
        (2.5, 0.0, "undecided"),
    ],
)
def test_resized_variants_that_are_not_equal_are_not_judged_as_if_they_were(width, gap, judgment):
    plain = outcome("plain", turns=[1.0], curves=[BITS])
    base = outcome(
        "base",
        turns=[1.0],
        curves=[moved(0, 0, gap)],
        base_expansion=1,
        moe_min_expansion=width,
        moe_max_expansion=width,
    )
    base.variant = replace(base.variant, is_resized=True)
    said = dict(verdict(ablation(plain, base)))["base MLP"]
    assert said.startswith("not at equal compute. `base`")
    assert said.endswith(f": {judgment}")


def test_a_base_mlp_of_variants_that_did_not_learn_is_not_judged():
    said = dict(verdict(ablation(outcome("plain"), outcome("base", base_expansion=1))))
    assert said["base MLP"].endswith("--learn tells whether it learns better for that")


def test_only_what_was_evaluated_on_the_same_text_is_compared():
    first = outcome("first", turns=[1.0], curves=[BITS])
    config = first.variant.config
    other_text = Variant("other", (), type(config)(data=DataConfig(source="other.txt")))
    other = outcome(turns=[1.0], curves=[BITS], variant=other_text)
    assert comparable(ablation(first, other)) == [first]


def test_places_have_their_unit():
    assert [place("seconds", x) for x in (3.14159, 250.4)] == ["3.14 s", "250 s"]
    assert place("tokens", 1e6) == "1,000,000 tokens"
