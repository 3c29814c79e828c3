"""A run's metrics for TensorBoard: `tensorboard --logdir RUN/tb`."""

from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from moebius.errors import StorageError


class TensorBoard:
    """Writes metrics lines as scalars; figures of layers and experts by name: cv/layer_03, tokens_per_expert/layer_03/1.

    One event a line, not one a scalar: a large model has hundreds, and the GPU waits while they are written.
    """

    def __init__(self, folder: Path, resume_step: int = 0):
        self.folder, self.failed = folder, False
        try:
            self._writer = EventFileWriter(str(folder))
        except OSError as error:
            raise StorageError(f"{folder}: {error.strerror}") from None
        if resume_step:  # what an interrupted run wrote beyond its checkpoint is not shown
            self._writer.add_event(Event(step=resume_step + 1, session_log=SessionLog(status=SessionLog.START)))

    def write(self, metrics: dict[str, Any], wall_time: float) -> None:
        """wall_time: seconds since 1970."""
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars(metrics).items()]
        try:
            self._writer.add_event(Event(step=metrics["step"], wall_time=wall_time, summary=Summary(value=values)))
        except OSError as error:  # of an earlier event: they are written in a thread
            self.failed = True
            raise StorageError(f"{self.folder}: {error.strerror}") from None

    def close(self) -> None:
        if not self.failed:  # else closing raises the same again, over what is being raised
            self._writer.close()


def scalars(metrics: dict[str, Any]) -> dict[str, float]:
    """The numbers of a metrics line by tag."""
    found: dict[str, float] = {}
    for name, value in metrics.items():
        if name != "step":
            found |= _scalars(name, value)
    return found


def _scalars(tag: str, value: Any) -> dict[str, float]:
    if isinstance(value, list):
        inner: dict[str, float] = {}
        for index, item in enumerate(value):
            # layers are numbered with two digits, so that they are shown in their order
            inner |= _scalars(f"{tag}/layer_{index:02d}" if "/" not in tag else f"{tag}/{index}", item)
        return inner
    return {} if value is None else {tag: float(value)}
