"""What an ablation found, in sentences: who is fastest, who learns best, where a mixture pays, what a base MLP is. No torch."""

from collections.abc import Iterator

from moebius.cost import active_parameters
from moebius.profile.ablate.comparison import Axis, Outcome, Spread, break_even, common_end, difference, speed
from moebius.profile.ablate.run import Ablation

SAME_COMPUTE = 0.02  # difference in active parameters up to which two variants count as of equal compute

Sentence = tuple[str, str]  # its title, and what it says


def verdict(ablation: Ablation) -> list[Sentence]:
    """Nothing where fewer than two variants ran."""
    said = [*_fastest(ablation.sound)]
    learned = comparable(ablation)
    if len(learned) > 1:
        said += [*_best(learned, "tokens"), *_best(learned, "seconds"), *_break_evens(learned)]
    return [*said, *_base_mlps(ablation)]


def notes(ablation: Ablation) -> list[str]:
    """What a reader must know besides."""
    text = [*ablation.notes, *_notes_on_learning(ablation)]
    if any(each.variant.is_mixture and each.variant.model.router_type == "sigmoid" for each in ablation.sound):
        text.append("a sigmoid router counts with all its experts as active; a token uses as many as pass the threshold")
    return text


def comparable(ablation: Ablation) -> list[Outcome]:
    """Those that learned and were evaluated on the same text as the first of them."""
    learned = [outcome for outcome in ablation.sound if outcome.curves]
    return [outcome for outcome in learned if _text(outcome) == _text(learned[0])]


def active_change(outcome: Outcome, other: Outcome) -> float:
    """Active parameters above the other's, as a share of those."""
    return active_parameters(outcome.variant.model) / active_parameters(other.variant.model) - 1


def place(axis: Axis, x: float) -> str:
    """Tokens or seconds, with their unit."""
    return f"{x:,.0f} tokens" if axis == "tokens" else f"{x:.3g} s" if x < 100 else f"{x:,.0f} s"


def _fastest(sound: list[Outcome]) -> Iterator[Sentence]:
    if len(sound) < 2:
        return
    best, following = sorted(sound, key=lambda outcome: -outcome.tokens_per_second)[:2]
    ratio = speed(best, following)
    times = f"{ratio.middle:.2f} ({ratio.lowest:.2f} to {ratio.highest:.2f})"
    if ratio.excludes(1):
        yield "fastest", f"{_name(best)}: {times} times the tokens/s of {_name(following)}"
    else:
        yield "fastest", f"{_name(best)} and {_name(following)} cannot be told apart: the ratio of their tokens/s is {times}"


def _best(learned: list[Outcome], axis: Axis) -> Iterator[Sentence]:
    """At the last place that all have reached."""
    end = common_end(learned, axis)
    reached = [outcome for outcome in learned if outcome.at(axis, end)]
    if len(reached) < 2:
        return
    best, following = sorted(reached, key=lambda outcome: sum(outcome.at(axis, end)))[:2]
    gap = difference(following.at(axis, end), best.at(axis, end))
    seeds = len(best.curves)
    title, where = f"equal {'tokens' if axis == 'tokens' else 'time'}", f"after {place(axis, end)}"
    if gap.excludes(0):
        yield title, f"{where} {_name(best)} is best, against {_name(following)} by {_bits(gap, seeds, sign='')}"
    else:
        yield title, f"{where} {_name(best)} and {_name(following)} cannot be told apart: {_bits(gap, seeds)} between them"


def _break_evens(learned: list[Outcome]) -> Iterator[Sentence]:
    """Of every mixture against the twin, on the means of the seeds."""
    twin = next((outcome for outcome in learned if outcome.variant.is_twin), None)
    for mixture in learned if twin else ():
        if not mixture.variant.is_mixture:
            continue
        assert twin is not None
        for axis in ("tokens", "seconds"):
            yield "break-even", f"{_name(mixture)} against its twin: {_break_even(mixture, twin, axis)}"


def _break_even(mixture: Outcome, twin: Outcome, axis: Axis) -> str:
    ours, theirs = mixture.mean_curve(axis), twin.mean_curve(axis)
    start, end = max(ours[0][0], theirs[0][0]), common_end([mixture, twin], axis)
    at = break_even(ours, theirs)
    if at is None:
        return f"not within {place(axis, end)}"
    gap = difference(mixture.at(axis, end), twin.at(axis, end))
    doubt = "" if gap.excludes(0) else f", but within the seeds' spread at the end: {_bits(gap, len(mixture.curves))}"
    since = f"at the first evaluation, {place(axis, at)}, and ever since" if at == start else f"from {place(axis, at)} on"
    return f"ahead {since}, up to {place(axis, end)}{doubt}"


def _base_mlps(ablation: Ablation) -> Iterator[Sentence]:
    """Of the variants with another base MLP than the first one's."""
    mixtures = [outcome for outcome in ablation.sound if outcome.variant.is_mixture]
    for outcome in mixtures[1:]:
        less, more = sorted((mixtures[0], outcome), key=lambda each: each.variant.model.base_width)
        if less.variant.model.base_width < more.variant.model.base_width:
            yield "base MLP", _base_mlp(ablation, more, less)


def _base_mlp(ablation: Ablation, more: Outcome, less: Outcome) -> str:
    """Whether it comes on top, and is judged by time, or shares the same compute, and is judged by what comes of that."""
    change, ratio = active_change(more, less), speed(more, less)
    figures = (
        f"{change:+.1%} active parameters, {ratio.middle:.2f} ({ratio.lowest:.2f} to {ratio.highest:.2f}) times the tokens/s"
    )
    pair = f"{_name(more)} against {_name(less)}: {figures}"
    if abs(change) <= SAME_COMPUTE or more.variant.is_resized or less.variant.is_resized:
        nearest = "" if abs(change) <= SAME_COMPUTE else " as near as widths of 64 come"
        worth = _worth(ablation, more, less, "tokens", "the split pays", "it does not pay")
        return f"shares the compute{nearest}. {pair}; {worth}"
    if change > 0:
        return f"comes on top. {pair}; {_worth(ablation, more, less, 'seconds', 'it earns its compute', 'waste')}"
    return f"neither on top nor sharing. {pair}; --iso-active compares at equal compute"


def _worth(ablation: Ablation, more: Outcome, less: Outcome, axis: Axis, better: str, worse: str) -> str:
    learned = comparable(ablation)
    if more not in learned or less not in learned:
        return "whether it learns better for that is what --learn tells"
    end = common_end(learned, axis)
    values = more.at(axis, end), less.at(axis, end)
    if not all(values):
        return f"they have no {axis} in common"
    gap = difference(*values)
    judgement = "undecided" if not gap.excludes(0) else better if gap.middle < 0 else worse
    return f"after {place(axis, end)} {_bits(gap, len(more.curves))}: {judgement}"


def _notes_on_learning(ablation: Ablation) -> Iterator[str]:
    learned = [outcome for outcome in ablation.sound if outcome.curves]
    if not learned:
        return
    others = [_name(outcome) for outcome in learned if outcome not in comparable(ablation)]
    if others:
        yield f"evaluated on another text than the first and so not compared: {', '.join(others)}"
    steps = min(outcome.curves[0][-1].step for outcome in learned)
    if (warm_up := max(outcome.variant.config.train.warmup_steps for outcome in learned)) >= steps:
        yield f"the learning rate was still rising at the end: train.warmup_steps={warm_up} of {steps} steps"
    ends = [outcome.curve(0, "seconds")[-1][0] for outcome in learned]
    if not ablation.plan.learn_seconds and max(ends) > 1.05 * min(ends):
        yield "at equal time the slower are caught before their schedule's end; --learn-seconds gives each its whole schedule"
    if ablation.plan.learn_seconds:
        yield "each one's schedule ends with its own time: at equal tokens the faster are caught before their schedule's end"
    acting = {
        name
        for outcome in learned
        for name, rule in outcome.variant.config.observe.rules().items()
        if rule.action not in ("off", "warn", "stop")
    }
    if acting:
        yield f"alarms do not act here: {', '.join(sorted(acting))}"


def _bits(gap: Spread, seeds: int, sign: str = "+") -> str:
    """A difference in bits per byte, and what the seeds say about it."""
    ends = f"{gap.lowest:{sign}.4f} to {gap.highest:{sign}.4f} over {seeds} seeds"
    return f"{gap.middle:{sign}.4f} bits per byte ({ends if seeds > 1 else 'one seed, so no spread: --seeds 3 has one'})"


def _text(outcome: Outcome) -> tuple[object, ...]:
    """What decides which text is held out."""
    data = outcome.variant.config.data
    return data.source, data.weights, data.text_field, data.errors, data.val_fraction


def _name(outcome: Outcome) -> str:
    return f"`{outcome.variant.name}`"
