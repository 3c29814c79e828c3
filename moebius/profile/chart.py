"""Draw a profile: each component's time, and the least time that it could take."""

from pathlib import Path
from typing import BinaryIO

from moebius.profile.result import Profile

FORWARD, BACKWARD, WAITING, FLOOR = "#3b6ea5", "#93b8dc", "#dddddd", "#d1495b"


def chart(profile: Profile, file: Path | BinaryIO) -> None:
    """Write a PNG with a bar per component, the longest at the top. Raises OSError."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = profile.rows[::-1]  # the first bar is drawn at the bottom
    figure = Figure(figsize=(9, 0.35 * len(rows) + 1.6), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.add_subplot()
    names = [row.component.replace("_", " ") for row in rows]
    forward = [row.forward * 1e3 for row in rows]
    backward = [row.backward * 1e3 for row in rows]
    axis.barh(names, forward, color=FORWARD, label="forward")
    axis.barh(names, backward, left=forward, color=BACKWARD, label="backward")
    if profile.measured.waiting:
        busy = [(row.forward + row.backward) * 1e3 for row in rows]
        waiting = [row.waiting * 1e3 for row in rows]
        axis.barh(names, waiting, left=busy, color=WAITING, label="waiting for the host")
    floor = [row.floor * 1e3 for row in rows]
    axis.barh(names, floor, height=0.25, color=FLOOR, label="floor on this device")
    for position, row in enumerate(rows):
        end = max(row.seconds, row.floor) * 1e3
        axis.annotate(f" {row.share:.1%}", (end, position), va="center", fontsize=8)
    axis.set_xlabel("ms of a step")
    speed = f"{profile.measured.seconds * 1e3:.1f} ms, {profile.tokens_per_second:,.0f} tokens/s"
    axis.set_title(f"{speed} on {profile.device}", fontsize=10)
    axis.legend(loc="lower right", fontsize=8)
    axis.margins(x=0.1)
    figure.savefig(file, format="png", dpi=130)
