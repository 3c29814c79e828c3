"""A run that another process trains, as far as its files tell. Nothing is written."""

import math
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from moebius.config import Config
from moebius.config.files import read_config
from moebius.errors import CheckpointError, MoebiusError
from moebius.observe.expert_counts import FOLDER, JOURNAL, READING_ERRORS, counts_of
from moebius.observe.growing_file import GrowingFile, Grown
from moebius.observe.json_lines import EVENTS
from moebius.observe.line_file import METRICS, Line, last_line
from moebius.observe.metrics import COUNTS, StepMetrics
from moebius.observe.so_far import SoFar, add_line
from moebius.observe.terminal import describe
from moebius.report.happenings import read_happenings
from moebius.train import checkpoint_store
from moebius.train.not_a_run import is_run, not_a_run
from moebius.train.ownership import is_owned

OWNER_SECONDS = 2.0
"""Time between two looks at who trains the run."""


class WatchedRun:
    """What is known of a run. `update` reads what its files have got since the last time."""

    def __init__(self, root: Path):
        """Raises CheckpointError if the folder is no run."""
        if not is_run(root):
            raise CheckpointError(f"{root}: {not_a_run(root)}")
        self.root = root
        self.so_far = SoFar(name=root.absolute().name)
        self.is_trained = False
        """Whether a process trains the run."""
        self._metrics, self._events = GrowingFile(root / METRICS), GrowingFile(root / EVENTS)
        self._config: Config | None = None
        self._config_id: object = None
        self._last: Line | None = None
        self._checkpoints: set[int] | None = None
        self._counts_at = 0
        self._looked = -math.inf
        self._troubles: set[str] = set()

    def update(self) -> list[str]:
        """Read what is new. Return the lines that a log would have about it."""
        said: list[str] = []
        if time.monotonic() - self._looked > OWNER_SECONDS:
            self._looked = time.monotonic()
            self.is_trained = is_owned(self.root)  # before its files, which are then all written
        try:
            said += self._read_config()
            said += self._read_metrics(self._metrics.read())
            said += self._read_events(self._events.read())
            said += self._find_checkpoints()
            self._read_counts()
        except OSError as error:
            said += self._trouble(f"{error.filename or self.root}: {error.strerror or error}")
        self._judge()
        return said

    @property
    def summary(self) -> str:
        """The state of the run as a line."""
        so_far = self.so_far
        figures = f"  {describe(so_far.latest)}" if so_far.latest else ""
        where = f"step {so_far.step}/{so_far.total_steps}" if so_far.step else "no step logged yet"
        return f"{so_far.name}: {so_far.state}  {where}{figures}"

    def _read_config(self) -> list[str]:
        """Read the configuration if it is another one: a run may be resumed with more steps.

        Return what is wrong with it.
        """
        path = self.root / "config.toml"
        try:
            stat = path.stat()
        except FileNotFoundError:
            return []
        if self._config_id == (stat.st_ino, stat.st_mtime_ns):
            return []
        self._config_id = stat.st_ino, stat.st_mtime_ns
        try:
            self._config = read_config(str(path), [], lambda line: None)
        except MoebiusError as error:
            return self._trouble(str(error))
        self.so_far.limits = self._config.observe
        return []

    def _read_metrics(self, grown: Grown) -> Iterator[str]:
        """Take note of logged steps, and yield a line for each that was not known.

        A file that was cut is read again from its beginning.
        """
        so_far = self.so_far
        known = {point.step: repr(point.loss) for point in so_far.points} if grown.is_new else {}
        first = min(known, default=0)  # what is earlier was known, too
        if grown.is_new:
            so_far.forget()
            self._last, so_far.seconds = None, None
        for line in grown.lines:
            if self._last is not None and line["step"] <= self._last["step"]:
                so_far.rewind(line["step"] - 1)
                self._last = None
            add_line(so_far, line)
            self._add_time(line)
            self._last = line
            with suppress(KeyError, TypeError, ValueError):  # of another version
                metrics = StepMetrics.from_json(line, _placeholders(line))
                so_far.show(metrics)
                if COUNTS in line:
                    so_far.loads.add(line["step"], line[COUNTS])
                is_known = line["step"] < first or known.get(line["step"]) == repr(metrics.loss)
                if not is_known:
                    yield f"step {line['step']}/{self._total_steps()}  {describe(metrics)}"
        if grown.num_damaged:
            yield from self._trouble(f"{METRICS}: damaged lines are passed over")

    def _read_events(self, grown: Grown) -> Iterator[str]:
        """Take note of events, and yield a line for each that was not known."""
        known = {happening.text for happening in self.so_far.happenings} if grown.is_new else set()
        if grown.is_new:
            self.so_far.happenings.clear()
        for happening in read_happenings(grown.lines).latest:
            line = f"step {happening.step}: {happening.kind}: {happening.text}"
            self.so_far.happen(line, happening.kind)
            if line not in known:
                yield line

    def _find_checkpoints(self) -> Iterator[str]:
        """Take note of new checkpoints."""
        folder = self.root / "checkpoints"
        steps = {checkpoint_store.step_of(path) for path in checkpoint_store.complete(folder)}
        before = self._checkpoints
        self._checkpoints = steps
        new = sorted(steps - before) if before is not None else sorted(steps)[-1:]
        for step in new:
            self.so_far.happen(f"step {step}: checkpoint", "checkpoint")
            if before is not None:
                yield f"step {step}: checkpoint"

    def _read_counts(self) -> None:
        """Read the tokens per expert of a model with many of them, which are in other files."""
        last = self._last
        if last is None or COUNTS in last or self._counts_at == last["step"]:
            return
        journal = self.root / FOLDER / JOURNAL
        line = last_line(journal) if journal.exists() else None
        if line is None or line["step"] != last["step"]:
            counts = None
            if not self.is_trained:  # the process that trained it has closed the journal
                with suppress(*READING_ERRORS):
                    counts = counts_of(self.root, last["step"])
            line = {"step": last["step"], COUNTS: counts} if counts else None
        if line is not None and COUNTS in line:
            self._counts_at = line["step"]
            self.so_far.loads.add(line["step"], line[COUNTS])
            self.so_far.version += 1

    def _add_time(self, line: Line) -> None:
        """Add the time of the steps up to a line, as far as their speed tells."""
        tokens, speed = line["tokens"], line["tokens_per_second"]
        if not tokens or not speed:
            return
        last, seconds = self._last, self.so_far.seconds
        new = tokens - last["tokens"] if last is not None and last["tokens"] else tokens
        is_first = last is None or seconds is None
        self.so_far.seconds = tokens / speed if is_first else (seconds or 0) + max(0, new) / speed

    def _total_steps(self) -> int:
        if self._config is None:
            return 0
        last = self._last or {}
        return self._config.train.last_step(last.get("step", 0), last.get("tokens") or 0)

    def _judge(self) -> None:
        """Say what the run is doing, and how long it will still take."""
        so_far, last = self.so_far, self._last
        so_far.total_steps = self._total_steps()
        step, tokens = (last["step"], last["tokens"] or 0) if last else (0, 0)
        is_over = self._config is not None and self._config.train.is_over(step, tokens)
        if not self.root.is_dir():
            state = "its directory is gone"
        elif self.is_trained:
            state = "training"
        else:
            state = "finished" if is_over else "not running"
        if state != so_far.state:
            so_far.state = state
            so_far.version += 1
        so_far.seconds_left = None
        speed: Any = last and last["tokens_per_second"]
        if self.is_trained and speed and step:
            so_far.seconds_left = max(0, so_far.total_steps - step) * tokens / step / speed

    def _trouble(self, line: str) -> list[str]:
        """Say once what is wrong with a file."""
        if line in self._troubles:
            return []
        self._troubles.add(line)
        self.so_far.happen(line, "alarm")
        return [line]


def _placeholders(line: Line) -> list[list[int]] | None:
    """Return counts for a line without any, which say no more than which layers have experts."""
    if COUNTS in line:
        return None
    return [[] if entropy is None else [0] for entropy in line["routing_entropy"]]
