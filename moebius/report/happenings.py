"""What happened in a run, in the words of the terminal, and which alarms are still on."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from moebius.observe.alarm import WORDS, Alarm, together
from moebius.observe.line_file import Line
from moebius.observe.metrics import COUNTS
from moebius.observe.sink import RESUMED, REWOUND_TO
from moebius.report.curves import number

MOST_LATEST = 200
"""Number of happenings that are kept for the table: the latest ones."""
MOST_SHOWN = 200
"""Number of happenings of one kind and rule that are drawn, spread over the whole run."""
MODEL = -1
"""The number of a layer that stands for the model as a whole."""
MOST_EXPERTS = 2**20
"""No layer has as many experts. A larger number is damage."""

Kind = Literal["alarm", "over", "action", "skipped", "resumed", "other"]


@dataclass(frozen=True)
class Happening:
    """Something that happened at a step, for all layers in which it did."""

    step: int
    kind: Kind
    """An alarm after which something was done is an `action`."""
    rule: str
    """The alarm's rule, or the kind of a happening that is no alarm."""
    text: str
    """What happened, in words, without the step."""


@dataclass
class Series:
    """The happenings of one kind and rule, thinned out if there are many."""

    shown: list[Happening] = field(default_factory=list)
    number: int = 0
    first: int = 0
    last: int = 0
    """The steps of the first and the last one."""
    _stride: int = 1

    def add(self, happening: Happening) -> None:
        """Add the next happening."""
        if self.number % self._stride == 0:
            self.shown.append(happening)
        if len(self.shown) >= 2 * MOST_SHOWN:
            self.shown, self._stride = self.shown[::2], 2 * self._stride
        self.first = happening.step if not self.number else self.first
        self.number, self.last = self.number + 1, happening.step


@dataclass
class Happenings:
    """All that events.jsonl says."""

    latest: deque[Happening] = field(default_factory=lambda: deque(maxlen=MOST_LATEST))
    series: dict[tuple[Kind, str], Series] = field(default_factory=dict)
    """All happenings by kind and rule."""
    open: dict[tuple[str, int], Alarm] = field(default_factory=dict)
    """The latest alarm of each rule and layer that is not over."""
    stopped: Alarm | None = None
    """The alarm that ended the run, if the run has not gone on since."""
    num_skipped_at_end: int = 0
    """Number of updates in a row that were skipped, up to the last event."""
    last_skipped: int = 0
    """Step of the last skipped update."""
    num_damaged: int = 0
    _experts: dict[tuple[str, int], set[int]] = field(default_factory=dict)
    """The experts of each rule and layer whose alarm is not over; MODEL for the layer itself."""

    @property
    def shown(self) -> list[Happening]:
        """The happenings to draw, in no order."""
        return [happening for series in self.series.values() for happening in series.shown]


def read_happenings(lines: Iterable[Line | None]) -> Happenings:
    """Return what the lines of an events.jsonl say, in which None is a damaged line."""
    happenings = Happenings()
    group: list[tuple[Alarm, str]] = []
    for line in lines:
        alarm = _alarm(line) if line is not None else None
        if group and (alarm is None or not _belongs(alarm, group[0][0])):
            _add(happenings, _of_alarms(group))
            group = []
        if alarm is not None:
            assert line is not None
            done = line.get("done")
            group.append((alarm, done if isinstance(done, str) else ""))
            _follow(happenings, alarm, line)
        elif line is None or not isinstance(line.get("event"), str):
            happenings.num_damaged += 1
        else:
            _other(happenings, line)
    if group:
        _add(happenings, _of_alarms(group))
    return happenings


def _alarm(line: Line) -> Alarm | None:
    """Return the alarm of an event; None for one that is no alarm or has no words."""
    rule = line.get("rule")
    if line.get("event") not in ("alarm", "over") or not isinstance(rule, str):
        return None
    if rule not in WORDS:
        return None
    places = {name: line.get(name) for name in ("layer", "since")}
    if not all(type(place) is int and MODEL <= place < 2**31 for place in places.values()):
        return None
    experts = line.get("experts", [line["expert"]] if line.get("expert", -1) != -1 else [])
    if not isinstance(experts, list) or not all(
        type(expert) is int and 0 <= expert < MOST_EXPERTS for expert in experts
    ):
        return None
    figures = line.get("figures")
    counts = figures.get(COUNTS) if isinstance(figures, dict) else None
    if not isinstance(counts, list) or not counts:
        counts = [0] * (1 + max(experts, default=0))
    return Alarm(
        step=line["step"],
        rule=rule,
        experts=tuple(experts),
        action=cast(Any, str(line.get("action", "warn"))),
        over=line["event"] == "over",
        metrics=cast(Any, None),  # an alarm that was read has its counts in `load`
        load=counts,
        value=number(line.get("value")),
        threshold=number(line.get("threshold")),
        **cast(Any, places),
    )


def _belongs(alarm: Alarm, first: Alarm) -> bool:
    """Return whether two alarms differ in nothing but the layer and its figures."""
    return (alarm.step, alarm.rule, alarm.over) == (first.step, first.rule, first.over)


def _of_alarms(group: list[tuple[Alarm, str]]) -> Happening:
    """Return alarms of one rule and step in several layers as one happening."""
    first = group[0][0]
    done = list(dict.fromkeys(text for _, text in group if text))
    text = together([alarm for alarm, _ in group])
    text = text.partition(": ")[2].partition(": ")[2]  # without the step and the kind
    if done:
        more = f" (and {len(done) - 1} more)" if len(done) > 1 else ""
        text += f"; {done[0]}{more}"
    kind: Kind = "over" if first.over else "action" if done else "alarm"
    return Happening(first.step, kind, first.rule, text)


def _follow(happenings: Happenings, alarm: Alarm, line: Line) -> None:
    """Keep account of which alarms are open, after one more."""
    place = (alarm.rule, alarm.layer)
    experts = happenings._experts.setdefault(place, set())
    if alarm.over:
        experts -= set(alarm.experts) or {MODEL}
        if not experts:
            happenings.open.pop(place, None)
    else:
        experts |= set(alarm.experts) or {MODEL}
        if alarm.rule != "loss_spike":  # a spike is over as soon as it is reported
            happenings.open[place] = alarm
        happenings.stopped = alarm if alarm.action == "stop" else happenings.stopped
    if type(rewound := line.get(REWOUND_TO)) is int:
        _rewind(happenings, rewound)


def _other(happenings: Happenings, line: Line) -> None:
    """Add an event that is no alarm."""
    step, event = line["step"], line["event"]
    if event == "skipped":
        in_a_row = line.get("in_a_row")
        happenings.num_skipped_at_end = in_a_row if type(in_a_row) is int else 1
        happenings.last_skipped = step
        text = "loss or gradient not finite; the update was skipped"
        _add(happenings, Happening(step, "skipped", "skipped update", text))
    elif event == RESUMED:
        happenings.stopped = None
        _rewind(happenings, step)
        text = f"resumed{_changes(line) or ' from an earlier step'}"
        _add(happenings, Happening(step, "resumed", "resumed", text))
    elif event == "sink" and isinstance(line.get("text"), str):
        text = f"{line.get('sink', '?')}: {line['text']}"
        _add(happenings, Happening(step, "other", "sink", text))
    elif isinstance(origin := line.get("origin"), dict):  # a branch, or an imported model
        from_step = f", step {origin['step']}" if origin.get("step") else ""
        text = f"{event} from {origin.get('path', '?')}{from_step}{_changes(line)}"
        _add(happenings, Happening(step, "other", event[:40], text))
    else:
        known = {name: value for name, value in line.items() if name not in ("event", "step")}
        text = ", ".join(f"{name} {value}" for name, value in known.items())[:300]
        _add(happenings, Happening(step, "other", event[:40], text or event))


def _changes(line: Line) -> str:
    """Return the settings that an event says were changed, in words; "" if there are none."""
    changed = line.get("changed")
    changes = []
    if isinstance(changed, dict):
        for name, values in changed.items():
            old, new = values if isinstance(values, list) and len(values) == 2 else ("?", values)
            changes.append(f"{name} {old} -> {new}")
    return f" with {', '.join(changes)}" if changes else ""


def _rewind(happenings: Happenings, step: int) -> None:
    """Forget alarms and skipped updates of later steps, which the run trains again."""
    for place in [place for place, alarm in happenings.open.items() if alarm.step > step]:
        del happenings.open[place]
        happenings._experts.pop(place, None)
    if happenings.last_skipped > step:
        happenings.num_skipped_at_end = happenings.last_skipped = 0


def _add(happenings: Happenings, happening: Happening) -> None:
    happenings.latest.append(happening)
    happenings.series.setdefault((happening.kind, happening.rule), Series()).add(happening)
