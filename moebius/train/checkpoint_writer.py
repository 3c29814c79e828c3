"""Save checkpoints while training continues."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

from moebius.errors import Interrupted, LostRunError, StorageError
from moebius.parallel.process import Process
from moebius.parallel.ranks import from_first
from moebius.train import checkpoint, checkpoint_store
from moebius.train.state import TrainState


class CheckpointWriter:
    """Writes checkpoints in a thread, one at a time. Training only waits for the copy to memory.

    Use it as a context manager: leaving it waits for the last checkpoint. An error in writing is
    raised by the next `save` or `wait`, and leaves no partial checkpoint behind. If another error
    ends the run first, it gets the error in writing as a note, and keeps its own exit code. Either
    gets a note on which checkpoint the run can continue from. Only the process of rank 0 saves
    anything.
    """

    def __init__(
        self,
        checkpoints: Path,
        keep_last: int,
        keep_every: int,
        process: Process | None = None,
        check_owned: Callable[[], None] = lambda: None,
    ):
        """`check_owned` raises LostRunError if the run is not this process's any more."""
        self.checkpoints, self.keep_last, self.keep_every = checkpoints, keep_last, keep_every
        self.writes = process is None or process.writes
        """Whether this process saves checkpoints."""
        self._check_owned = check_owned
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._copies: checkpoint.Groups = {}
        self._saved: tuple[int, int] | None = None
        """Step and position in the text of the state that was saved last."""
        self._failures: list[Exception] = []

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._wait()
        except Exception as failure:
            if error is None:
                self._add_notes(failure)
                raise
        finally:
            self._pool.shutdown(wait=True)
        if error is not None:
            self._add_notes(error)

    def has(self, state: TrainState) -> None:
        """Note that an intact checkpoint holds this state, so that it is not written again.

        While a checkpoint is replaced, a process that is killed leaves it under another name.
        """
        self._saved = (state.step, state.sequences)

    def save(self, state: TrainState) -> None:
        """Copy the state and start writing it, unless the state of this step is already saved.

        Raises StorageError if the previous checkpoint could not be written. This state is written
        nevertheless, because it may be the last one of the run, and the disk may have recovered.
        """
        try:
            self.wait()
        except Exception:
            self._start(state)
            self.wait()
            raise
        self._start(state)

    def wait(self) -> None:
        """Wait until the current checkpoint is written. Raises StorageError if that failed.

        Several processes wait together, and all of them raise it.
        """
        failure: Exception | None = None
        try:
            self._wait()
        except Exception as error:
            failure = error
        reason = from_first(failure and str(failure))
        if failure is not None:
            raise failure
        if reason is not None:
            self._saved = None
            raise StorageError(reason)

    def _wait(self) -> None:
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            pending.result()
        except Exception as failure:
            self._saved = None
            self._failures.append(failure)
            raise

    def last_good(self) -> str:
        """Return, in words, which checkpoint the run can continue from."""
        return checkpoint_store.last_good(self.checkpoints)

    def _start(self, state: TrainState) -> None:
        if self._saved == (state.step, state.sequences):
            return
        self._saved = (state.step, state.sequences)
        tensors, values = state.captured()
        if not self.writes:
            return state.placement.give_parts(tensors.values())
        self._copies = checkpoint.snapshot(tensors, self._copies, state.placement.whole)
        folder = checkpoint_store.folder_of(self.checkpoints, state.step)
        self._pending = self._pool.submit(self._write, folder, self._copies, values)

    def _write(self, folder: Path, tensors: checkpoint.Groups, values: dict[str, Any]) -> None:
        self._check_owned()
        failure: StorageError | None = None
        try:
            checkpoint.write(folder, tensors, values)
        except StorageError as error:
            failure = error
        self._check_owned()  # if the folder is gone, this is what to say about the failure
        if failure is not None:
            raise failure
        try:
            checkpoint_store.prune(self.checkpoints, self.keep_last, self.keep_every, folder)
        except OSError as error:
            raise StorageError(
                f"{error.filename or self.checkpoints}: {error.strerror or error}; "
                "it could not be deleted"
            ) from None

    def _add_notes(self, error: BaseException) -> None:
        """Add the errors in writing, and the last good checkpoint, to the error that ends the run.

        The command line prints notes on the line of the error.
        """
        for failure in self._failures:
            if failure is not error:
                error.add_note(_in_words(failure))
        is_lost = any(isinstance(e, LostRunError) for e in (error, *self._failures))
        if not isinstance(error, Interrupted) and not is_lost:
            error.add_note(self.last_good())


def _in_words(failure: Exception) -> str:
    kind = "" if isinstance(failure, StorageError) else f"{type(failure).__name__}: "
    return kind + " ".join(str(failure).split())
