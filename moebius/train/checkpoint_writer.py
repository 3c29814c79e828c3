"""Save checkpoints while training continues."""

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

from moebius.errors import CheckpointError, StorageError
from moebius.parallel.process import Process
from moebius.train import checkpoint, checkpoint_store
from moebius.train.state import TrainState


class CheckpointWriter:
    """Writes checkpoints in a thread, one at a time. Training only waits for the copy to memory.

    Use it as a context manager: leaving it waits for the last checkpoint. An error in writing is
    raised by the next `save` or `wait`, and leaves no partial checkpoint behind. Only the process
    of rank 0 saves anything.
    """

    def __init__(
        self,
        checkpoints: Path,
        keep_last: int,
        keep_every: int,
        process: Process | None = None,
    ):
        self.checkpoints, self.keep_last, self.keep_every = checkpoints, keep_last, keep_every
        self._writes = process is None or process.writes
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._copies: checkpoint.Groups = {}
        self._saved: tuple[int, int] | None = None

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            self._pool.shutdown(wait=True)

    def save(self, state: TrainState) -> None:
        """Copy the state and start writing it, unless the state of this step is already saved.

        Raises StorageError if the previous checkpoint could not be written.
        """
        self.wait()
        if not self._writes or self._saved == (state.step, state.sequences):
            return
        self._saved = (state.step, state.sequences)
        tensors, values = state.captured()
        self._copies = checkpoint.snapshot(tensors, into=self._copies)
        folder = self.checkpoints / f"step-{state.step:08d}"
        self._pending = self._pool.submit(self._write, folder, self._copies, values)

    def wait(self) -> None:
        """Wait until the current checkpoint is written. Raises StorageError if that failed."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _write(self, folder: Path, tensors: checkpoint.Groups, values: dict[str, Any]) -> None:
        checkpoint.write(folder, tensors, values)
        try:
            checkpoint_store.prune(self.checkpoints, self.keep_last, self.keep_every)
        except CheckpointError as error:
            raise StorageError(
                f"just written, but not readable: {error}; older checkpoints are kept"
            ) from None
        except OSError as error:
            raise StorageError(
                f"{error.filename or self.checkpoints}: {error.strerror or error}; "
                "it could not be deleted"
            ) from None
