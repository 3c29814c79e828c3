"""The process that writes a run's metrics with the library `wandb`, as stdin tells it to.

It imports neither torch nor a configuration, so that it starts quickly. It ends when its stdin
does, even if the process that trains was killed. What people should know goes to stdout, line by
line; the last line of stderr says why it failed.
"""

import json
import os
import signal
import sys
import threading
from collections import Counter, deque
from pathlib import Path
from typing import Any

LAST_SECONDS = 60
"""How long this process may take to end once the other one has died."""
MOST_ROWS = 100
"""Number of latest events and samples in the tables of W&B."""
MOST_BINS = 512
"""Largest number of bins of a histogram that W&B takes."""
ALERT_SECONDS = 600
"""Least time between two alerts of a rule, which W&B sends as mails."""


def serve() -> None:
    """Write what stdin says until it ends, and exit."""
    # A scheduler sends signals to all processes of a job. This one ends with its stdin.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    messages = sys.stdin.buffer
    written: _Written | None = None
    is_whole = False
    for text in messages:
        message = json.loads(text)
        if "begin" in message:
            written = _Written(message["begin"])
        elif "end" in message:
            is_whole = True
        elif written is not None:
            written.take(message)
    if not is_whole:
        threading.Timer(LAST_SECONDS, os._exit, (1,)).start()
    if written is not None:
        written.finish(0 if is_whole else 1)
    os._exit(0)  # the library would wait for its service


class _Written:
    """A run in W&B."""

    def __init__(self, begin: dict[str, Any]):
        import wandb

        self._wandb: Any = wandb
        self._folder = Path(begin["folder"])
        self._run = _begun(begin)
        # Every figure is drawn over the step of the run. W&B's own counts messages.
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")
        self._samples = deque[list[Any]](maxlen=MOST_ROWS)
        self._events = deque[list[Any]](maxlen=MOST_ROWS)
        self._counts = Counter[str]()
        self._step, self._is_told, self._is_moved = 0, True, False
        for sample in begin["samples"]:
            self._samples.append([sample["step"], sample.get("prompt"), sample.get("text")])

    def take(self, message: dict[str, Any]) -> None:
        """Write a step, an event or a sample."""
        if "log" in message:
            row = dict(message["log"])
            self._step = row["step"]
            for name, counts in message["loads"].items():
                row[name] = self._histogram(counts)
            row |= {f"6_events/{kind}": number for kind, number in self._counts.items()}
            self._run.log(row)
        elif "event" in message:
            self._take_event(message["event"], message["line"])
        elif "sample" in message:
            sample = message["sample"]
            self._samples.append([sample["step"], sample["prompt"], sample["text"]])
            self._is_told = False
            self._log_tables(sample["step"])

    def finish(self, code: int) -> None:
        """Write the tables, and wait until everything is uploaded."""
        self._log_tables(self._step)
        self._run.finish(exit_code=code)

    def _take_event(self, event: dict[str, Any], line: str) -> None:
        """Count an event, keep it for the table, and send an alert if it is a new alarm."""
        kind = event.get("rule") or event["event"]
        self._counts[kind] += 1
        self._is_told = False
        self._events.append([event["step"], kind, line])
        if event["event"] == "alarm" and not event.get("over"):
            level = self._wandb.AlertLevel.WARN
            self._run.alert(f"{kind} alarm", line, level, wait_duration=ALERT_SECONDS)

    def _log_tables(self, step: int) -> None:
        """Write the tables, if they have changed."""
        if self._is_told:
            return
        self._is_told = True
        if not self._folder.is_dir():  # the library would make it again
            if not self._is_moved:
                print(f"{self._folder} has been moved: tables are left out", flush=True)
            self._is_moved = True
            return
        tables = {}
        if self._samples:
            rows = [list(row) for row in self._samples]
            tables["samples"] = self._wandb.Table(["step", "prompt", "text"], rows)
        if self._events:
            rows = [list(row) for row in self._events]
            tables["events"] = self._wandb.Table(["step", "kind", "text"], rows)
        self._run.log({"step": step} | tables)

    def _histogram(self, counts: list[int]) -> Any:
        """Return the load of a layer's experts, one bin each, which W&B draws as a heat map.

        More experts than W&B has bins are put together, as many as fit.
        """
        size = -(-len(counts) // MOST_BINS)
        bins = [sum(counts[start : start + size]) for start in range(0, len(counts), size)]
        edges = [*range(0, len(counts), size), len(counts)]
        return self._wandb.Histogram(np_histogram=(bins, edges))


def _begun(begin: dict[str, Any]) -> Any:
    """Return the run in W&B. It is written offline if W&B cannot be reached, and this is said."""
    import wandb

    settings = wandb.Settings(
        console="off",
        silent=True,
        disable_git=True,
        disable_code=True,
        x_save_requirements=False,
        x_stats_pid=begin["process"],
        init_timeout=begin["patience"],
    )

    def started(mode: str) -> Any:
        return wandb.init(
            mode=mode,  # pyright: ignore[reportArgumentType]
            project=begin["project"],
            entity=begin["entity"] or None,
            id=begin["id"],
            name=begin["name"],
            resume="allow",
            dir=begin["folder"],
            config=begin["config"],
            settings=settings,
        )

    if begin["mode"] == "offline":
        return started("offline")
    try:
        return started("online")
    except Exception as error:  # the library's own classes, and those of its parts
        reason = " ".join(str(error).split()) or type(error).__name__
        print(
            f"{reason}; written offline, into {begin['folder']}/wandb, which `wandb sync` uploads",
            flush=True,
        )
        wandb.teardown()  # its service still has the run of the first attempt
        return started("offline")
