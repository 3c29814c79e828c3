"""State what an ablation has shown, in sentences, without torch.

They say which variant is fastest, which learns best, where a mixture overtakes its dense twin, and
whether a base MLP is worth its compute.
"""

from collections.abc import Iterator

from moebius.ablate.ablation import Ablation
from moebius.ablate.comparison import (
    Axis,
    Outcome,
    Spread,
    break_even,
    common_end,
    difference,
    quoted,
    speed,
)
from moebius.ablate.doubts import doubts
from moebius.ablate.variants import SAME_COMPUTE
from moebius.cost.counts import active_parameters

Sentence = tuple[str, str]
"""The title of a sentence, and the sentence."""
UNTRUSTED = "these times cannot be trusted (see WARNING)"


def verdict(ablation: Ablation) -> list[Sentence]:
    """Return the sentences. There are none if fewer than two variants ran.

    Times that cannot be trusted decide nothing.
    """
    axes: tuple[Axis, ...] = ("tokens",) if doubts(ablation) else ("tokens", "seconds")
    sentences = [*_fastest(ablation)]
    learned = comparable(ablation)
    if len(learned) > 1:
        for axis in axes:
            sentences += _best(learned, axis)
        sentences += _break_evens(learned, axes)
    return [*sentences, *_base_mlps(ablation)]


def comparable(ablation: Ablation) -> list[Outcome]:
    """Return the trained variants that were evaluated on the same text as the first of them."""
    learned = [outcome for outcome in ablation.sound if outcome.curves]
    return [outcome for outcome in learned if _text(outcome) == _text(learned[0])]


def active_change(outcome: Outcome, reference: Outcome) -> float:
    """Return the relative difference in active parameters; 0.1 is 10% more than the reference."""
    own, other = (active_parameters(each.variant.model) for each in (outcome, reference))
    return own / other - 1


def place(axis: Axis, x: float) -> str:
    """Return a number of tokens or seconds with its unit."""
    if axis == "tokens":
        return f"{x:,.0f} tokens"
    return f"{x:.3g} s" if x < 100 else f"{x:,.0f} s"


def _fastest(ablation: Ablation) -> Iterator[Sentence]:
    sound = ablation.sound
    if len(sound) < 2:
        return
    if doubts(ablation):
        yield "fastest", f"no verdict, because {UNTRUSTED}"
        return
    best, second = sorted(sound, key=lambda outcome: -outcome.tokens_per_second)[:2]
    ratio = speed(best, second)
    if ratio.excludes(1):
        yield "fastest", f"{quoted(best)}: {_times(ratio)} times the tokens/s of {quoted(second)}"
    else:
        yield (
            "fastest",
            f"{quoted(best)} and {quoted(second)} cannot be told apart: the ratio of their "
            f"tokens/s is {_times(ratio)}",
        )


def _best(learned: list[Outcome], axis: Axis) -> Iterator[Sentence]:
    """Yield which variant learned best up to the last place that all variants have reached."""
    end = common_end(learned, axis)
    reached = [outcome for outcome in learned if outcome.at(axis, end)]
    if len(reached) < 2:
        return
    best, second = sorted(reached, key=lambda outcome: sum(outcome.at(axis, end)))[:2]
    gap = difference(second.at(axis, end), best.at(axis, end))
    seeds = len(best.curves)
    title = f"equal {'tokens' if axis == 'tokens' else 'time'}"
    where = f"after {place(axis, end)} {quoted(best)}"
    if gap.excludes(0):
        lead = _bits(gap, seeds, sign="")
        yield title, f"{where} is best, ahead of {quoted(second)} by {lead}"
    else:
        bits = _bits(gap, seeds)
        yield (
            title,
            f"{where} and {quoted(second)} cannot be told apart: they differ by {bits}",
        )


def _break_evens(learned: list[Outcome], axes: tuple[Axis, ...]) -> Iterator[Sentence]:
    """Yield where each mixture overtakes the dense twin, using the means over the seeds."""
    twin = next((outcome for outcome in learned if outcome.variant.is_twin), None)
    if twin is None:
        return
    for mixture in learned:
        if mixture.variant.is_mixture:
            pair = f"{quoted(mixture)} against its twin"
            for axis in axes:
                yield "break-even", f"{pair}: {_break_even(mixture, twin, axis)}"


def _break_even(mixture: Outcome, twin: Outcome, axis: Axis) -> str:
    curve, of_twin = mixture.mean_curve(axis), twin.mean_curve(axis)
    start, end = max(curve[0][0], of_twin[0][0]), common_end([mixture, twin], axis)
    since = break_even(curve, of_twin)
    if since is None:
        return f"not within {place(axis, end)}"
    gap = difference(mixture.at(axis, end), twin.at(axis, end))
    bits = _bits(gap, len(mixture.curves))
    doubt = "" if gap.excludes(0) else f", but at the end within the spread of the seeds: {bits}"
    if since == start:
        return (
            f"ahead at the first evaluation, {place(axis, since)}, and at every later one up to "
            f"{place(axis, end)}{doubt}"
        )
    return f"ahead from {place(axis, since)} on, up to {place(axis, end)}{doubt}"


def _base_mlps(ablation: Ablation) -> Iterator[Sentence]:
    """Yield what a wider base MLP is worth, for mixtures whose base differs from the first's."""
    mixtures = [outcome for outcome in ablation.sound if outcome.variant.is_mixture]
    for outcome in mixtures[1:]:
        narrow, wide = sorted(
            (mixtures[0], outcome), key=lambda each: each.variant.model.base_width
        )
        if narrow.variant.model.base_width < wide.variant.model.base_width:
            yield "base MLP", _base_mlp(ablation, wide, narrow)


def _base_mlp(ablation: Ablation, wide: Outcome, narrow: Outcome) -> str:
    """Return whether the wider base MLP is worth its compute.

    If it adds compute, the variants are compared after equal time. If it takes compute from the
    experts, they are compared after equal tokens.
    """
    change, ratio = active_change(wide, narrow), speed(wide, narrow)
    pair = (
        f"{quoted(wide)} against {quoted(narrow)}: {change:+.1%} active parameters, "
        f"{_times(ratio)} times the tokens/s"
    )
    if abs(change) <= SAME_COMPUTE:
        worth = _worth(ablation, wide, narrow, "tokens", "the split pays", "it does not pay")
        return f"shares the compute. {pair}; {worth}"
    if wide.variant.is_resized or narrow.variant.is_resized:
        # With less compute only a success is conclusive, and with more compute only a failure.
        open_question = "undecided, because the compute is not equal"
        better = "the split pays" if change < 0 else open_question
        worse = "it does not pay" if change > 0 else open_question
        worth = _worth(ablation, wide, narrow, "tokens", better, worse)
        return f"not at equal compute. {pair}; {worth}"
    if change > 0:
        worth = _worth(ablation, wide, narrow, "seconds", "it earns its compute", "waste")
        return f"comes on top. {pair}; {worth}"
    return f"neither on top nor sharing. {pair}; --iso-active compares at equal compute"


def _worth(
    ablation: Ablation, wide: Outcome, narrow: Outcome, axis: Axis, better: str, worse: str
) -> str:
    """Return the loss of `wide` minus that of `narrow`, and call it `better` or `worse`."""
    learned = comparable(ablation)
    if wide not in learned or narrow not in learned:
        return "--learn tells whether it learns better for that"
    if axis == "seconds" and doubts(ablation):
        return f"undecided, because {UNTRUSTED}"
    end = common_end(learned, axis)
    values = wide.at(axis, end), narrow.at(axis, end)
    if not all(values):
        return f"they have no {axis} in common"
    gap = difference(*values)
    judgment = "undecided" if not gap.excludes(0) else better if gap.middle < 0 else worse
    return f"after {place(axis, end)} {_bits(gap, len(wide.curves))}: {judgment}"


def _times(ratio: Spread) -> str:
    return f"{ratio.middle:.2f} ({ratio.lowest:.2f} to {ratio.highest:.2f})"


def _bits(gap: Spread, seeds: int, sign: str = "+") -> str:
    """Return a difference in bits per byte, and its spread over the seeds."""
    spread = "one seed, so no spread; --seeds 3 shows one"
    if seeds > 1:
        spread = f"{gap.lowest:{sign}.4f} to {gap.highest:{sign}.4f} over {seeds} seeds"
    return f"{gap.middle:{sign}.4f} bits per byte ({spread})"


def _text(outcome: Outcome) -> tuple[object, ...]:
    """Return everything that decides which text is held out."""
    data = outcome.variant.config.data
    return data.source, data.weights, data.text_field, data.errors, data.val_fraction
