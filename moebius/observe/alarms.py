"""Alarms: rules that are applied to every logged step.

This file only decides which alarms fire. What they watch is in moebius/observe/figures.py, and
what is done about them in moebius/train/actions.py.
"""

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from moebius.config.observe import ObserveConfig, Rule
from moebius.moe.load import is_enough
from moebius.observe.alarm import WORDS, Alarm
from moebius.observe.figures import ABOUT_LOAD, Figure, Place, figures
from moebius.observe.metrics import StepMetrics

FEWEST_LOSSES = 5  # losses that must precede a loss before it is compared with their median
NEVER = -1  # in place of a step


@dataclass
class Course:
    """What has been seen of the figures of one place: a value for each expert, or just one."""

    fine_at: np.ndarray
    """Last step at which each figure was harmless, or at which its alarm fired."""
    beyond_at: np.ndarray
    """For alarms that have fired: last step at which the figure was beyond the threshold. NEVER
    for the others."""
    has_fired: bool = False
    """Whether any alarm has fired and is not over."""
    seen: list[tuple[int, np.ndarray]] = field(default_factory=list)
    """Steps and logged figures inside the rule's window, if it averages over several steps."""

    @classmethod
    def new(cls, size: int) -> "Course":
        """Return the course of a place of which nothing has been seen."""
        return cls(np.zeros(size, np.int64), np.full(size, NEVER, np.int64))


class Alarms:
    """All rules of a run and what they have seen so far, which is part of its resumable state."""

    def __init__(self, config: ObserveConfig):
        self.rules = {name: rule for name, rule in config.rules().items() if rule.action != "off"}
        self.courses: dict[Place, Course] = {}
        self.counted: dict[int, list[int]] = {}
        """For layers whose logged steps have too few tokens to judge the load: the tokens per
        expert since it was last judged, by the layer's number."""

    def look(self, metrics: StepMetrics, has_equal_experts: bool = False) -> list[Alarm]:
        """Return the alarms that fire or end at a logged step, in the order of the rules.

        With `has_equal_experts`, all experts of a layer were equal in this step (a common start),
        and the router's gradient is not judged.
        """
        alarms: list[Alarm] = []
        loads = self._loads(metrics)
        for name, rule in self.rules.items():
            for figure in figures(name, rule, metrics, loads, has_equal_experts):
                course = self.courses.get(figure.place)
                if course is None or len(course.fine_at) != len(figure.values):
                    course = self.courses[figure.place] = Course.new(len(figure.values))
                values = _over_window(course, figure, rule, metrics.step)
                figure = figure._replace(values=values)
                for chosen, since, over in _judged(course, figure, rule, metrics.step):
                    load = loads.get(figure.place.layer)
                    alarms.append(_alarm(course, figure, rule, chosen, since, over, metrics, load))
        return alarms

    def keep_watching(self, alarm: Alarm) -> None:
        """Report the end of the alarm again after another `patience` harmless steps.

        An action that takes several steps to undo needs this.
        """
        course = self.courses[alarm.place]
        course.beyond_at[list(alarm.experts) or [0]], course.has_fired = alarm.step, True

    def state(self) -> dict[str, Any]:
        """Return what has been seen, for a checkpoint's JSON."""
        courses = self.courses.items()
        return {
            "seen": [
                [*place, [[step, values.tolist()] for step, values in course.seen]]
                for place, course in courses
                if course.seen
            ],
            "fine_at": [[*place, course.fine_at.tolist()] for place, course in courses],
            "beyond_at": [
                [*place, course.beyond_at.tolist()]
                for place, course in courses
                if course.has_fired
            ],
            "counted": [[layer, counts] for layer, counts in self.counted.items()],
        }

    def load(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned, in this version or in an earlier one.

        Earlier versions had an entry for each expert, and may not have had `counted`.
        """
        self.courses = {}
        for rule, layer, steps in _by_place(state["fine_at"]):
            course = self.courses[Place(rule, layer)] = Course.new(len(steps))
            course.fine_at[:] = steps
        for rule, layer, steps in _by_place(state["beyond_at"]):
            if course := self.courses.get(Place(rule, layer)):
                course.beyond_at[: len(steps)] = steps[: len(course.beyond_at)]
                course.has_fired = bool((course.beyond_at > NEVER).any())
        for rule, layer, seen in _seen_by_place(state["seen"]):
            if course := self.courses.get(Place(rule, layer)):
                course.seen = [
                    (step, np.array(values))
                    for step, values in seen
                    if len(values) == len(course.fine_at)
                ]
        self.counted = {layer: list(counts) for layer, counts in state.get("counted", [])}

    def _loads(self, metrics: StepMetrics) -> dict[int, list[int]]:
        """Return the tokens per expert of the layers whose load can be judged at this step.

        With 512 experts and 2,048 tokens, every 55th healthy expert has no token in a step, and
        the CV is 0.5. Steps are therefore added up until they have enough tokens.
        """
        if not any(name in self.rules for name in ABOUT_LOAD):
            return {}
        loads: dict[int, list[int]] = {}
        for number, layer in metrics.routed_layers:
            counts = layer.tokens_per_expert
            before = self.counted.pop(number, [])
            if len(before) == len(counts):
                counts = [sum(pair) for pair in zip(before, counts, strict=True)]
            (loads if is_enough(counts) else self.counted)[number] = counts
        return loads


def _over_window(course: Course, figure: Figure, rule: Rule, step: int) -> np.ndarray:
    """Return the figures' means over the window; for a loss, its ratio to the median."""
    is_loss, values = figure.place.rule == "loss_spike", figure.values
    if rule.window == 1 and not is_loss:
        return values
    before = [(at, seen) for at, seen in course.seen if step - rule.window < at < step]
    if np.isfinite(values).all():
        course.seen = [*before, (step, values)]
    earlier = [seen for _, seen in before]
    if is_loss:
        losses = [float(seen[0]) for seen in earlier]
        if len(losses) < FEWEST_LOSSES:
            return np.full(1, min(1.0, rule.threshold))  # harmless, whatever the threshold
        return values / statistics.median(losses)
    return (sum(earlier) + values) / (len(earlier) + 1)


def _judged(
    course: Course, figure: Figure, rule: Rule, step: int
) -> Iterator[tuple[np.ndarray, np.ndarray, bool]]:
    """Take note of a step's figures. Yield the indices of those whose alarm fires or is over.

    With them come the steps since which that is so, and whether the alarm is over.
    """
    is_above = WORDS[figure.place.rule].is_above
    values, limit = figure.values, figure.threshold
    is_beyond = values > limit if is_above else values < limit
    if not course.has_fired and not is_beyond.any():  # almost always, and ten times as fast
        course.fine_at.fill(step)
        return
    has_fired = course.beyond_at > NEVER
    # The figure may have crossed the threshold right after the last step at which it was harmless.
    fires = (is_beyond & (step - course.fine_at >= rule.patience)).nonzero()[0]
    ends = (~is_beyond & has_fired & (step - course.beyond_at >= rule.patience)).nonzero()[0]
    since_fine, since_beyond = course.fine_at[fires], course.beyond_at[ends]
    course.beyond_at[is_beyond & has_fired] = step
    course.fine_at[~is_beyond] = step
    course.fine_at[fires] = course.beyond_at[fires] = step
    course.beyond_at[ends] = NEVER
    course.has_fired = bool((course.beyond_at > NEVER).any())
    if len(fires):
        yield fires, since_fine, False
    if len(ends):
        yield ends, since_beyond, True


def _alarm(
    course: Course,
    figure: Figure,
    rule: Rule,
    chosen: np.ndarray,
    since: np.ndarray,
    over: bool,
    metrics: StepMetrics,
    load: list[int] | None,
) -> Alarm:
    """Return the alarm about the chosen figures of a place."""
    values = figure.values[chosen]
    order = np.argsort(-values if WORDS[figure.place.rule].is_above else values, kind="stable")
    return Alarm(
        step=metrics.step,
        rule=figure.place.rule,
        layer=figure.place.layer,
        experts=tuple(chosen[order].tolist()) if figure.is_of_experts else (),
        value=float(values[order[0]]),
        threshold=figure.threshold,
        since=int(since.min()),
        action=rule.action,
        over=over,
        metrics=metrics,
        load=load,
        remaining=int((course.beyond_at > NEVER).sum()) if over else 0,
    )


def _by_place(entries: list[list[Any]]) -> Iterator[tuple[str, int, list[int]]]:
    """Yield the rule, the layer and the steps of its experts from a state of any version."""
    steps: dict[tuple[str, int], dict[int, int]] = {}
    for rule, layer, *rest in entries:
        if len(rest) == 1:
            yield rule, layer, rest[0]
        else:
            expert, step = rest
            steps.setdefault((rule, layer), {})[max(0, expert)] = step
    for (rule, layer), by_expert in steps.items():
        yield rule, layer, [by_expert.get(n, NEVER) for n in range(max(by_expert) + 1)]


def _seen_by_place(
    entries: list[list[Any]],
) -> Iterator[tuple[str, int, list[tuple[int, list[float]]]]]:
    """Yield the rule, the layer and the logged figures of a state of any version."""
    seen: dict[tuple[str, int], dict[int, list[float]]] = {}
    for rule, layer, *rest in entries:
        if len(rest) == 1:
            yield rule, layer, rest[0]
            continue
        for step, value in rest[1]:  # the experts of a layer follow each other
            seen.setdefault((rule, layer), {}).setdefault(step, []).append(value)
    for (rule, layer), by_step in seen.items():
        yield rule, layer, sorted(by_step.items())
