"""A run's metrics for TensorBoard: `tensorboard --logdir RUN/tb`."""

import time
from pathlib import Path
from typing import Any

from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from moebius.errors import StorageError
from moebius.observe.metrics import StepMetrics
from moebius.observe.sink import Event

FileEvent: Any = event_pb2.Event  # pyright: ignore[reportAttributeAccessIssue]
SessionLog: Any = event_pb2.SessionLog  # pyright: ignore[reportAttributeAccessIssue]
Summary: Any = summary_pb2.Summary  # pyright: ignore[reportAttributeAccessIssue]

FOLDER = "tb"
LAYERS_EVERY = 1 / 1000
"""With many experts, the layers' figures are written again once this fraction of the run so far
has passed since the last time: 6,000 times in 100,000 steps. TensorBoard shows 1,000 points of a
tag by default, and with every step these tags would take up more than all other files."""


class TensorBoard:
    """A sink that writes every figure as a scalar, tagged by its name, layer and expert.

    Tags look like `loss`, `cv/layer_03`, `tokens_per_expert/layer_03/1` and, with several sources,
    `val_by_source/NAME/loss`. With many experts, no expert has a tag of its own, and the layers'
    figures are written less and less often (see `LAYERS_EVERY`). A step is one event, not one per
    scalar: a large model has hundreds of them, and the GPU waits while they are written.
    """

    def open(self, run: Path, step: int) -> None:
        """Start a new event file in the run's tb/ folder, and hide later steps in old files."""
        self.folder, self.failed = run / FOLDER, False
        self._layers_at = 0
        try:
            _wait_for_a_later_name(self.folder)
            self._writer = EventFileWriter(str(self.folder))
        except OSError as error:
            raise StorageError(f"{self.folder}: {error.strerror}") from None
        self.rewind(step)  # at step 0, too: a killed run may have written before its checkpoint

    def write(self, metrics: StepMetrics, wall_time: float | None = None) -> None:
        """Write a logged step. wall_time is in seconds since 1970; None is now."""
        line = metrics.to_json()
        if metrics.has_many_experts:
            if metrics.step - self._layers_at < LAYERS_EVERY * metrics.step:
                line = {name: value for name, value in line.items() if not isinstance(value, list)}
            else:
                self._layers_at = metrics.step
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in _scalars(line)]
        event = FileEvent(
            step=metrics.step,
            wall_time=time.time() if wall_time is None else wall_time,
            summary=Summary(value=values),
        )
        self._add(event)

    def event(self, event: Event) -> None:
        """Write nothing, because the figures of an event are already among the metrics."""

    def rewind(self, step: int) -> None:
        """Hide what was written about later steps, which the run is about to train again.

        The files keep it, but TensorBoard drops it when it reads this event.
        """
        self._layers_at = min(self._layers_at, step)
        self._add(FileEvent(step=step + 1, session_log=SessionLog(status=SessionLog.START)))

    def close(self) -> None:
        """Write what is still in memory and close the file."""
        if not self.failed:  # closing would raise the same error again and hide the first one
            self._writer.close()

    def _add(self, event: Any) -> None:
        try:
            self._writer.add_event(event)
        except OSError as error:  # from an earlier event: a thread writes them
            self.failed = True
            raise StorageError(f"{self.folder}: {error.strerror}") from None


def _wait_for_a_later_name(folder: Path) -> None:
    """Wait until a new event file is read after those that are in the folder.

    They are read in the order of their names, which begin with the second of their creation.
    """
    seconds = [path.name.split(".")[3:4] for path in folder.glob("events.out.tfevents.*")]
    while [str(int(time.time()))] in seconds:
        time.sleep(0.02)


def _scalars(line: dict[str, Any]) -> list[tuple[str, float]]:
    """Return a metrics line's figures with their tags; the step is not one of them."""
    return [
        pair for name, value in line.items() if name != "step" for pair in _tagged(name, value)
    ]


def _tagged(tag: str, value: Any) -> list[tuple[str, float]]:
    if isinstance(value, dict):
        return [pair for name, item in value.items() for pair in _tagged(f"{tag}/{name}", item)]
    if isinstance(value, list):
        # Layer numbers have two digits, so that TensorBoard sorts them numerically.
        of_layers = "/" not in tag
        names = (f"layer_{n:02d}" if of_layers else str(n) for n in range(len(value)))
        return [
            pair
            for name, item in zip(names, value, strict=True)
            for pair in _tagged(f"{tag}/{name}", item)
        ]
    return [] if value is None else [(tag, float(value))]
