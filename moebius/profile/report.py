"""A profile for people and for programs: a table, JSON, a chart."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from moebius.config import Config
from moebius.cost import training_flops_per_token
from moebius.profile.ceilings import Ceilings
from moebius.profile.floor import Component
from moebius.profile.measure import Measured


@dataclass(frozen=True)
class Row:
    """A component: what is expected of it, and what was measured. Seconds of a whole step."""

    component: str
    parameters: int
    flops: float
    bytes: float
    floor: float
    forward: float
    backward: float
    waiting: float
    share: float

    @property
    def seconds(self) -> float:
        return self.forward + self.backward + self.waiting

    @property
    def efficiency(self) -> float:
        """Floor over measured; 0 where there is no floor."""
        return self.floor / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Profile:
    """A configuration's step on a device. text: what it was trained on. item: bytes of a number in a matrix product.
    has_row_for_every_choice: tokens are moved to as many experts as the router may choose, taken or not (static shapes)."""

    config: Config
    device: str
    text: str
    item: int
    has_row_for_every_choice: bool
    ceilings: Ceilings
    measured: Measured
    rows: list[Row]

    @property
    def limits(self) -> tuple[float, float]:
        """FLOP/s and bytes/s."""
        return self.ceilings.flops, self.ceilings.bytes

    @property
    def tokens_per_second(self) -> float:
        return self.config.train.batch_size * self.config.train.seq_len / self.measured.seconds

    @property
    def mfu(self) -> float:
        """The configuration's FLOPs, without recomputation, over the measured matrix-product rate."""
        per_token = training_flops_per_token(self.config.model, self.config.train.seq_len, self.measured.experts_per_token)
        return self.tokens_per_second * per_token / self.ceilings.flops


def rows_of(expected: dict[str, Component], measured: Measured, ceilings: Ceilings) -> list[Row]:
    """Largest first; what takes less than a thousandth of the step is left out."""
    names = [*expected, *(piece.component for piece in measured.pieces if piece.component not in expected)]
    rows = []
    for name in dict.fromkeys(names):
        component = expected.get(name, Component(0, type(next(iter(expected.values())).forward)()))
        work = component.forward + component.backward
        forward, backward, waiting = (measured.of(name, each) for each in ("forward", "backward", "waiting"))
        floor = sum(each.seconds(ceilings.flops, ceilings.bytes) for each in (component.forward, component.backward))
        share = measured.of(name) / measured.seconds
        rows.append(Row(name, component.parameters, work.flops, work.bytes, floor, forward, backward, waiting, share))
    return sorted((row for row in rows if row.share >= 0.001), key=lambda row: -row.seconds)


def table(profile: Profile) -> list[str]:
    """Lines for the terminal."""
    widths = [*(9 for _ in headings(profile)[1:-2]), 7, 10]
    lines = []
    for name, *others in (headings(profile), *(values(profile, row) for row in profile.rows)):
        lines.append(f"{name:<22}" + "".join(f"{text:>{width}}" for text, width in zip(others, widths, strict=True)).rstrip())
    return [*lines, "", *(f"{name:<11}{text}" for name, text in summary(profile))]


def headings(profile: Profile) -> list[str]:
    """The columns of a table."""
    waits = ["waiting"] if profile.measured.waiting else []
    return ["component", "params", "FLOPs", "bytes", "floor", "forward", "backward", *waits, "share", "of floor"]


def values(profile: Profile, row: Row) -> list[str]:
    """A component's, in words, as headings names them."""
    _, scale = _unit(profile)
    seconds = [row.forward, row.backward, *([row.waiting] if profile.measured.waiting else [])]
    floor = f"{row.floor * scale:.2f}" if row.floor else ""
    sizes = [_short(size) for size in (row.parameters, row.flops, row.bytes)]
    efficiency = f"{row.efficiency:.0%}" if row.floor else ""
    return [
        row.component.replace("_", " "),
        *sizes,
        floor,
        *(f"{each * scale:.2f}" for each in seconds),
        f"{row.share:.1%}",
        efficiency,
    ]


def summary(profile: Profile) -> list[tuple[str, str]]:
    """What is to be said of the whole step: names and texts."""
    measured, (unit, scale) = profile.measured, _unit(profile)
    tokens = profile.config.train.batch_size * profile.config.train.seq_len
    low, high = min(measured.rounds) * scale, max(measured.rounds) * scale
    floor = sum(row.floor for row in profile.rows)
    memory = f", {measured.gpu.peak_bytes / 1e9:.1f} GB at most" if measured.gpu.peak_bytes else ""
    waiting = f", {measured.waiting / measured.seconds:.1%} of it waiting for the host" if measured.waiting else ""
    return [
        (
            "step",
            f"{measured.seconds * scale:.2f} {unit} ({low:.2f} to {high:.2f}) for {tokens:,} tokens: "
            f"{profile.tokens_per_second:,.0f} tokens/s, MFU {profile.mfu:.1%}{memory}",
        ),
        ("floor", f"{floor * scale:.2f} {unit}, {floor / measured.seconds:.0%} of the step; all times are in {unit}"),
        (
            "covered",
            f"the components add up to {measured.covered:.1%} of the step{waiting}; while it was cut it took "
            f"{measured.slowdown:.3f} times as long",
        ),
        *([("host", _host(profile))] if measured.host else []),
        ("text", profile.text),
        (
            "ceilings",
            f"{_short(profile.ceilings.flops)}FLOP/s, {_short(profile.ceilings.bytes)}B/s, measured on {profile.device}",
        ),
    ]


def _host(profile: Profile) -> str:
    measured, (unit, scale) = profile.measured, _unit(profile)
    share = measured.host / measured.seconds
    return f"takes about {measured.host * scale:.2f} {unit} to launch, {share:.0%} of the step: a shorter one waits for it"


def _unit(profile: Profile) -> tuple[str, float]:
    return ("ms", 1e3) if profile.measured.seconds < 10 else ("s", 1.0)


def as_json(profile: Profile, findings: Sequence[Any], verified: Sequence[Any] = ()) -> str:
    """Everything in the table, in seconds, FLOPs and bytes; seconds before and after each change that was made."""
    measured = profile.measured
    found: dict[str, Any] = {
        "device": profile.device,
        "ceilings": asdict(profile.ceilings),
        "step_seconds": measured.seconds,
        "rounds": measured.rounds,
        "tokens_per_second": profile.tokens_per_second,
        "mfu": profile.mfu,
        "gpu": asdict(measured.gpu),
        "host_seconds": measured.host,
        "text": profile.text,
        "covered": measured.covered,
        "slowdown": measured.slowdown,
        "experts_per_token": measured.experts_per_token,
        "findings": [asdict(finding) for finding in findings],
        "verified": [{"finding": each.finding.title, "before": each.before, "after": each.after} for each in verified],
        "components": [asdict(row) | {"efficiency": row.efficiency} for row in profile.rows],
    }
    return json.dumps(found, indent=1)


def chart(profile: Profile, file: Path | BinaryIO) -> None:
    """A PNG: each component's floor, and what forward and backward take above it. Raises OSError."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = profile.rows[::-1]
    figure = Figure(figsize=(9, 0.35 * len(rows) + 1.6), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.add_subplot()
    names = [row.component.replace("_", " ") for row in rows]
    forward = [row.forward * 1e3 for row in rows]
    axis.barh(names, forward, color="#3b6ea5", label="forward")
    axis.barh(names, [row.backward * 1e3 for row in rows], left=forward, color="#93b8dc", label="backward")
    if profile.measured.waiting:
        busy = [(row.forward + row.backward) * 1e3 for row in rows]
        axis.barh(names, [row.waiting * 1e3 for row in rows], left=busy, color="#dddddd", label="waiting for the host")
    axis.barh(names, [row.floor * 1e3 for row in rows], height=0.25, color="#d1495b", label="floor on this device")
    for place, row in enumerate(rows):
        axis.annotate(f" {row.share:.1%}", (max(row.seconds, row.floor) * 1e3, place), va="center", fontsize=8)
    axis.set_xlabel("ms of a step")
    speed = f"{profile.measured.seconds * 1e3:.1f} ms, {profile.tokens_per_second:,.0f} tokens/s"
    axis.set_title(f"{speed} on {profile.device}", fontsize=10)
    axis.legend(loc="lower right", fontsize=8)
    axis.margins(x=0.1)
    figure.savefig(file, format="png", dpi=130)


def _short(number: float) -> str:
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f}{letter}"
    return f"{number:.0f}" if number else ""
