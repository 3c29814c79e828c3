"""A run's metrics for TensorBoard: `tensorboard --logdir RUN/tb`."""

import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2, types_pb2
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import metadata as layout_metadata
from tensorboard.plugins.text import metadata as text_metadata
from tensorboard.summary.writer.record_writer import RecordWriter

from moebius.errors import StorageError
from moebius.observe.heat import heat_png
from moebius.observe.metrics import StepMetrics
from moebius.observe.sink import Event, Sample
from moebius.observe.tags import BALANCE, LAYER, LAYERS_EVERY, LOSS, Rarer, tags

FileEvent: Any = event_pb2.Event  # pyright: ignore[reportAttributeAccessIssue]
SessionLog: Any = event_pb2.SessionLog  # pyright: ignore[reportAttributeAccessIssue]
Summary: Any = summary_pb2.Summary  # pyright: ignore[reportAttributeAccessIssue]
Tensor: Any = tensor_pb2.TensorProto  # pyright: ignore[reportAttributeAccessIssue]
STRING: Any = types_pb2.DT_STRING  # pyright: ignore[reportAttributeAccessIssue]
Layout: Any = layout_pb2.Layout  # pyright: ignore[reportAttributeAccessIssue]
Category: Any = layout_pb2.Category  # pyright: ignore[reportAttributeAccessIssue]
Chart: Any = layout_pb2.Chart  # pyright: ignore[reportAttributeAccessIssue]
Lines: Any = layout_pb2.MultilineChartContent  # pyright: ignore[reportAttributeAccessIssue]

FOLDER = "tb"
CONFIG = "config.toml"
VERSION = "brain.Event:2"
"""The version of the file's format, in its first record."""
SHARES = "expert_shares"
IMAGES_EVERY = 1 / 50
"""What `LAYERS_EVERY` is for the heat map, of which TensorBoard shows 10 by default."""
CHARTS = {
    "Loss": {"training and held-out loss": (f"{LOSS}/loss", f"{LOSS}/val_loss")},
    "Balance": {
        "CV of each layer": (f"{LAYER}cv/.*",),
        "dead experts of each layer": (f"{LAYER}dead_experts/.*",),
        "routing entropy of each layer": (f"{LAYER}routing_entropy/.*",),
        "worst and mean CV": (f"{BALANCE}/cv_.*",),
    },
}
"""Charts of several tags, which TensorBoard's page "Custom scalars" shows."""


class TensorBoard:
    """A sink that writes figures as scalars, the experts' shares as images, and texts.

    Tags look like `1_loss/loss` and `layer_cv/03` (see moebius/observe/tags.py). A step is one
    record, not one per scalar: a large model has hundreds of them.

    TensorBoard's own writer is not used. It has a thread that opens the file by its name again and
    again, so that it fails with a traceback when the run is renamed.
    """

    def open(self, run: Path, step: int) -> None:
        """Start a new event file in the run's tb/ folder, and hide later steps in old files."""
        self._layers, self._image = Rarer(LAYERS_EVERY), Rarer(IMAGES_EVERY)
        self._file = None
        self.folder = run / FOLDER
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = (self.folder / _new_name(self.folder)).open("xb")
            config = (run / CONFIG).read_text("utf-8") if (run / CONFIG).exists() else ""
        except OSError as error:
            raise StorageError(f"{self.folder}: {error.strerror}") from None
        self._records = RecordWriter(self._file)
        self._add(FileEvent(wall_time=time.time(), file_version=VERSION))
        self.rewind(step)  # at step 0, too: a killed run may have written before its checkpoint
        self._add_values(step, [_layout(), *([_text("config", _code(config))] if config else [])])

    def write(self, metrics: StepMetrics, wall_time: float | None = None) -> None:
        """Write a logged step. wall_time is in seconds since 1970; None is now."""
        step = metrics.step
        with_layers = not metrics.has_many_experts or self._layers.is_due(step)
        values = [
            Summary.Value(tag=tag, simple_value=value)
            for tag, value in tags(metrics, with_layers).items()
        ]
        has_experts = any(True for _ in metrics.routed_layers)
        if has_experts and self._image.is_due(step):
            png, width, height = heat_png(metrics)
            image = Summary.Image(
                width=width, height=height, colorspace=3, encoded_image_string=png
            )
            values.append(Summary.Value(tag=SHARES, image=image))
        self._add_values(step, values, wall_time)

    def event(self, event: Event) -> None:
        """Write an event as a text, under its kind or, for an alarm, its rule."""
        line = event.to_json()
        kind = line.get("rule") or line["event"]
        self._add_values(line["step"], [_text(f"events/{kind}", _code(str(event)))])

    def sample(self, sample: Sample) -> None:
        """Write a text of the model."""
        self._add_values(sample.step, [_text("samples", _code(sample.text))])

    def rewind(self, step: int) -> None:
        """Hide what was written about later steps, which the run is about to train again.

        The files keep it, but TensorBoard drops it when it reads this event.
        """
        self._layers.rewind(step)
        self._image.rewind(step)
        start = SessionLog(status=SessionLog.START)
        self._add(FileEvent(step=step + 1, wall_time=time.time(), session_log=start))

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            with suppress(OSError):  # what `_add` could not write is in the buffer; it said so
                self._file.close()

    def _add_values(self, step: int, values: list[Any], wall_time: float | None = None) -> None:
        now = time.time() if wall_time is None else wall_time
        self._add(FileEvent(step=step, wall_time=now, summary=Summary(value=values)))

    def _add(self, event: Any) -> None:
        try:
            self._records.write(event.SerializeToString())
            self._records.flush()
        except OSError as error:
            raise StorageError(f"{self.folder}: {error.strerror}") from None


def _new_name(folder: Path) -> str:
    """Return a name for a new event file, waiting until it comes after those in the folder.

    They are read in the order of their names, which begin with the second of their creation.
    """
    taken = {path.name.split(".")[3] for path in folder.glob("events.out.tfevents.*.*")}
    while (second := f"{int(time.time()):010d}") in taken:
        time.sleep(0.02)
    return f"events.out.tfevents.{second}.{socket.gethostname()}.{os.getpid()}"


def _text(tag: str, text: str) -> Any:
    """Return a text, which TensorBoard shows as Markdown."""
    metadata = text_metadata.create_summary_metadata("", "")
    tensor = Tensor(dtype=STRING, string_val=[text.encode("utf-8", "replace")])
    return Summary.Value(tag=tag, metadata=metadata, tensor=tensor)


def _code(text: str) -> str:
    """Return a text as a block of Markdown that is shown as it is."""
    return "".join(f"    {line}\n" for line in text.splitlines()) or "    "


def _layout() -> Any:
    """Return the charts of several tags."""
    categories = [
        Category(
            title=title,
            chart=[
                Chart(title=name, multiline=Lines(tag=patterns))
                for name, patterns in charts.items()
            ],
        )
        for title, charts in CHARTS.items()
    ]
    return Summary.Value(
        tag=layout_metadata.CONFIG_SUMMARY_TAG,
        metadata=layout_metadata.create_summary_metadata(),
        tensor=Tensor(dtype=STRING, string_val=[Layout(category=categories).SerializeToString()]),
    )
