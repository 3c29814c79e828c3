"""The tokens per expert of models with many experts, in a folder of Parquet files.

In metrics.jsonl they would take up several times as much as everything else. The folder has a
file for every `GROUP` logged steps, and `pandas.read_parquet(folder)` reads them all: a row for
each step, layer and expert. The latest steps are lines of a journal first, so that a killed
process loses none of them.
"""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from moebius.config.paths import free_path
from moebius.config.printable import print_note
from moebius.errors import StorageError
from moebius.observe.line_file import DAMAGED, cut, read_lines
from moebius.observe.metrics import COUNTS, StepMetrics
from moebius.observe.sink import Event, Sample

FOLDER = COUNTS
GROUP = 256
"""Number of logged steps in a file."""
LEVELS = 64
"""Counts are rounded to a power of two that is at most this fraction of the layer's mean count.

Sampling noise is larger, and the exact counts would take two to four times as many bytes. Means
of fewer than twice as many tokens are stored exactly."""
# Programs that read a folder of Parquet files leave out names that begin with an underscore.
JOURNAL, PARTIAL = "_latest.jsonl", "_partial"
_NAME = re.compile(r"steps-(\d{10})-(\d{10})\.parquet")
READING_ERRORS = (OSError, ValueError, KeyError, TypeError)
"""What pyarrow raises for a damaged file, and `_read` for one that is not ours."""
_MARK = b"PAR1"  # the last bytes of a Parquet file
_LAYERS = b"experts_per_layer"  # key of the file's metadata

Counts = list[list[int]]
"""Tokens that each expert took, layer by layer; empty for a layer without experts."""


class ExpertCounts:
    """A sink for the tokens per expert of models with many experts; it ignores other models."""

    def __init__(self, report: Callable[[str], None] = print_note):
        """`report` gets a line for each damaged file."""
        self._report = report

    def open(self, run: Path, step: int) -> None:
        """Continue the run's files after `step`, without what they have of later steps."""
        self.folder, self._rows, self._failed = run / FOLDER, dict[int, Counts](), False
        self.rewind(step)

    def write(self, metrics: StepMetrics) -> None:
        """Append a logged step to the journal. A full journal becomes a file."""
        if not metrics.has_many_experts:
            return
        counts = [layer.tokens_per_expert for layer in metrics.layers]
        self._rows[metrics.step] = counts
        self._do(lambda: _append(self.folder, metrics.step, counts))
        if len(self._rows) >= GROUP:
            self._seal()

    def event(self, event: Event) -> None:
        """Write nothing: an event has its own counts."""

    def sample(self, sample: Sample) -> None:
        """Write nothing."""

    def rewind(self, step: int) -> None:
        """Drop what was written about later steps."""
        if self.folder.is_dir():
            self._do(lambda: self._cut(step))

    def close(self) -> None:
        """Write what is in the journal as a file, which a resumed run goes on with."""
        if self._rows and not self._failed:
            self._seal()

    def _cut(self, step: int) -> None:
        cut(self.folder / JOURNAL, step, self._report)
        journal = dict(_journal(self.folder))
        self._rows = {}
        settled = 0
        kept = [file for file in _files(self.folder) if file[1] <= step]
        for path, _, _ in _files(self.folder)[len(kept) :]:
            path.unlink()
        for path, _, last in kept:
            if not _is_whole(path):
                self._set_aside(path)
            elif path == kept[-1][0]:
                self._reopen(path, step)
            else:
                settled = last
        # A process that was killed after it had written a file has left the same steps here.
        self._rows |= {at: counts for at, counts in journal.items() if at > settled}
        _write_journal(self.folder, self._rows)
        for path, first, _ in _files(self.folder):
            if first in self._rows:
                path.unlink()

    def _reopen(self, path: Path, step: int) -> None:
        """Take the steps up to `step` out of a file, to be written again with those after it."""
        try:
            self._rows |= {at: counts for at, counts in _read(path) if at <= step}
        except READING_ERRORS:
            self._set_aside(path)

    def _set_aside(self, path: Path) -> None:
        """Rename a damaged file, so that nobody reads it, and report it."""
        place = path.rename(free_path(path.with_name(f"_{path.name}{DAMAGED}")))
        self._report(f"{path}: damaged, set aside as {place.name}")

    def _seal(self) -> None:
        self._do(lambda: _write(self.folder, self._rows))
        self._rows = {}
        self._do(lambda: _write_journal(self.folder, {}))

    def _do(self, work: Callable[[], None]) -> None:
        try:
            work()
        except OSError as error:
            self._failed = True
            raise StorageError(f"{error.filename or self.folder}: {error.strerror}") from None


def read_counts(
    run: Path, report: Callable[[str], None] | None = None
) -> Iterator[tuple[int, Counts]]:
    """Yield each step that is in a run's folder, in order, with its counts. Raises OSError.

    A damaged file is an error, too, unless there is a `report`. It gets a line about each such
    file, and the others are read.
    """
    folder = run / FOLDER
    files = _files(folder) if folder.is_dir() else []
    for path, _, _ in files:
        try:
            yield from _read(path)
        except READING_ERRORS as error:
            if report is None:
                raise
            report(f"{path}: not readable ({type(error).__name__})")
    settled = files[-1][2] if files else 0
    yield from (row for row in _journal(folder) if row[0] > settled)


def counts_of(run: Path, step: int) -> Counts | None:
    """Return the counts of one step, or None if they are not there. Raises OSError."""
    folder = run / FOLDER
    if not folder.is_dir():
        return None
    rows = dict(_journal(folder))
    if step not in rows:
        for path, first, last in _files(folder):
            if first <= step <= last:
                rows |= dict(_read(path))
    return rows.get(step)


def copy_later_counts(run: Path, step: int, to: Path) -> bool:
    """Copy what a run's folder has of steps after `step` into another folder.

    Returns whether there is anything. Raises OSError.
    """
    folder, target = run / FOLDER, to / FOLDER
    if not folder.is_dir():
        return False
    later = [file for file in _files(folder) if file[2] > step]
    for path, first, _ in later:
        target.mkdir(exist_ok=True)
        if first > step:
            shutil.copyfile(path, target / path.name)
        else:
            _write(target, {at: counts for at, counts in _read(path) if at > step})
    settled = max([step, *(last for _, _, last in later)])
    if rows := {at: counts for at, counts in _journal(folder) if at > settled}:
        target.mkdir(exist_ok=True)
        _write(target, rows)
    return bool(later or rows)


def _files(folder: Path) -> list[tuple[Path, int, int]]:
    """Return the folder's files in order, each with its first and last step."""
    matches = [(path, _NAME.fullmatch(path.name)) for path in folder.iterdir()]
    return sorted((path, int(match[1]), int(match[2])) for path, match in matches if match)


def _is_whole(path: Path) -> bool:
    """Return whether a file begins and ends like a Parquet file, which a cut one does not."""
    with path.open("rb") as file:
        begins = file.read(len(_MARK)) == _MARK
        file.seek(-min(len(_MARK), path.stat().st_size), 2)
        return begins and file.read() == _MARK


def _journal(folder: Path) -> Iterator[tuple[int, Counts]]:
    """Yield the steps in the journal, with their counts."""
    path = folder / JOURNAL
    lines = read_lines(path) if path.exists() else []
    yield from ((line["step"], line[COUNTS]) for line in lines if COUNTS in line)


def _append(folder: Path, step: int, counts: Counts) -> None:
    folder.mkdir(exist_ok=True)
    with (folder / JOURNAL).open("a") as file:
        file.write(_line(step, counts))


def _line(step: int, counts: Counts) -> str:
    return json.dumps({"step": step, COUNTS: counts}) + "\n"


def _write_journal(folder: Path, rows: dict[int, Counts]) -> None:
    """Replace the journal. A crash leaves either the old or the new one."""
    partial = folder / PARTIAL
    partial.write_text("".join(_line(step, counts) for step, counts in sorted(rows.items())))
    partial.replace(folder / JOURNAL)


def _write(folder: Path, rows: dict[int, Counts]) -> None:
    """Write steps as a file. A crash leaves the whole file or none."""
    import pyarrow
    import pyarrow.parquet

    steps = sorted(rows)
    experts = [len(layer) for layer in rows[steps[0]]]
    # Neighbors of a row are the same expert at other steps, whose counts are similar.
    tokens_ES = np.array([[n for layer in rows[step] for n in layer] for step in steps]).T
    layer_E = np.repeat(np.arange(len(experts)), experts)
    expert_E = np.concatenate([np.arange(count) for count in experts])
    shape = tokens_ES.shape
    table = pyarrow.table(
        {
            "step": np.broadcast_to(np.array(steps, np.int32), shape).ravel(),
            "layer": np.repeat(layer_E.astype(np.int16), len(steps)),
            "expert": np.repeat(expert_E.astype(np.int16), len(steps)),
            "tokens": _rounded(tokens_ES, experts).astype(np.int32).ravel(),
        }
    ).replace_schema_metadata({_LAYERS: json.dumps(experts)})
    pyarrow.parquet.write_table(
        table,
        folder / PARTIAL,
        compression="zstd",
        use_dictionary=["layer", "expert"],  # pyright: ignore[reportArgumentType]
        column_encoding={"step": "DELTA_BINARY_PACKED", "tokens": "BYTE_STREAM_SPLIT"},
        write_page_checksum=True,
    )
    (folder / PARTIAL).replace(folder / f"steps-{steps[0]:010d}-{steps[-1]:010d}.parquet")


def _rounded(tokens_ES: np.ndarray, experts: list[int]) -> np.ndarray:
    """Return the counts, rounded as `LEVELS` says."""
    rounded, start = [], 0
    for count in experts:
        layer_ES = tokens_ES[start : start + count]
        start += count
        if count:
            means_S = np.maximum(layer_ES.mean(axis=0) / LEVELS, 1)
            units_S = 2 ** np.floor(np.log2(means_S)).astype(np.int64)
            rounded.append((layer_ES + units_S // 2) // units_S * units_S)
    return np.concatenate(rounded)


def _read(path: Path) -> Iterator[tuple[int, Counts]]:
    """Yield the steps of a file, with their counts. Raises OSError or ValueError."""
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(path, page_checksum_verification=True)
    experts: list[int] = json.loads(table.schema.metadata[_LAYERS])
    num_experts = sum(experts)
    num_steps = table.num_rows // num_experts
    columns: Any = {name: table[name].to_numpy() for name in ("step", "tokens")}
    tokens_SE = columns["tokens"].reshape(num_experts, num_steps).T.tolist()
    ends = [sum(experts[: layer + 1]) for layer in range(len(experts))]
    spans = [(end - count, end) for end, count in zip(ends, experts, strict=True)]
    for step, tokens_E in zip(columns["step"][:num_steps].tolist(), tokens_SE, strict=True):
        yield step, [tokens_E[start:end] for start, end in spans]
