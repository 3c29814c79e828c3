"""Count what was read from a source, by kind, and what was not, with the reasons."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from moebius.config.printable import printable_line
from moebius.cost.units import counted
from moebius.data.formats import POINTERS

HIDDEN = "hidden"
METADATA = "metadata of a saved data set"
READ_ELSEWHERE = "link to a folder that is read anyway or that contains the source"
SAME_FILE = "link to a file that is read anyway"
NOT_ENTERED = "folder that this glob does not enter (** does)"
UNREADABLE = "folder that cannot be read"
FOLDERS = (NOT_ENTERED, UNREADABLE)
"""Reasons that are about folders. Nobody knows how many files are in them."""
EXPECTED = (HIDDEN, METADATA, READ_ELSEWHERE, SAME_FILE)
"""Reasons for which a file is passed over in every healthy source, so that they are no warning."""


@dataclass
class Amount:
    """What was read of one kind of file."""

    files: int = 0
    """Number of files; 0 for a dataset on the Hugging Face hub."""
    documents: int = 0
    bytes: int = 0
    """Bytes of UTF-8 text in the documents."""


@dataclass
class PassedOver:
    """The files that were passed over for one reason."""

    count: int
    first: str
    """Name of the first such file."""


@dataclass
class Tally:
    """What was read from a source, and what was not."""

    count: int = 0
    """Number of documents that were left out because they could not be read."""
    first: str = ""
    """Why the first such document could not be read; empty if there is none."""
    read: dict[str, Amount] = field(default_factory=dict)
    """What was read, by kind of file, or by the name of a dataset on the Hugging Face hub."""
    passed_over: dict[str, PassedOver] = field(default_factory=dict)
    """The files that were not read, by reason."""

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Tally":
        """Return the tally that meta.json holds. Raises TypeError or KeyError."""
        return cls(
            values["count"],
            values["first"],
            {kind: Amount(**amount) for kind, amount in values["read"].items()},
            {why: PassedOver(**files) for why, files in values["passed_over"].items()},
        )

    def add(self, reason: str, count: int = 1) -> None:
        """Count documents that could not be read, and why the first of them could not."""
        self.count += count
        self.first = self.first or reason

    def pass_over(self, reason: str, name: str, count: int = 1) -> None:
        """Count files that are not read. `name` is one of them."""
        known = self.passed_over.setdefault(reason, PassedOver(0, name))
        known.count += count

    def relative_to(self, folder: str) -> "Tally":
        """Return the tally with the names of files below the folder as seen from there.

        It is kept with the tokens, and the folder may be moved.
        """
        prefix = f"{folder.rstrip('/')}/"
        passed_over = {
            why: replace(files, first=files.first.removeprefix(prefix))
            for why, files in self.passed_over.items()
        }
        first = self.first.removeprefix(printable_line(prefix))
        return replace(self, first=first, passed_over=passed_over)

    def found_in(self, folder: str) -> "Tally":
        """Return the tally with the full names of the files that are in the folder now."""
        passed_over = {
            why: replace(files, first=os.path.join(folder, files.first))  # noqa: PTH118
            if os.path.lexists(os.path.join(folder, files.first))  # noqa: PTH118
            else files
            for why, files in self.passed_over.items()
        }
        return replace(self, passed_over=passed_over)

    def clear(self) -> None:
        """Forget everything, because the source is read again from its beginning."""
        self.__init__()

    def include(self, listed: "Tally") -> None:
        """Add what was not read according to the list of a source's files."""
        self.count += listed.count
        self.first = self.first or listed.first
        for why, files in listed.passed_over.items():
            self.pass_over(why, files.first, files.count)

    @property
    def num_files(self) -> int:
        """Number of files that were read."""
        return sum(amount.files for amount in self.read.values())

    def num_passed_over(self) -> int:
        """Return how many files were passed over for a reason that is no matter of course."""
        return sum(files.count for why, files in self.passed_over.items() if why not in EXPECTED)

    def lines(self) -> list[str]:
        """Return what was read and what was passed over, as lines for the user."""
        read = "; ".join(
            f"{_what(kind, amount)} ({counted(amount.documents, 'document')}, "
            f"{_size(amount.bytes)})"
            for kind, amount in sorted(self.read.items())
        )
        lines = [f"read {read or 'nothing'}"]
        if self.passed_over:
            start = "passed over"
            if self.num_passed_over() > self.num_files:
                start = "WARNING: most files were passed over"
            elif any(why in self.passed_over for why in (*FOLDERS, *POINTERS)):
                start = "WARNING: passed over"
            lines.append(f"{start}: {self.reasons()}")
        if self.count:
            lines.append(
                f"left out {counted(self.count, 'document')} that could not be read; the first: "
                f"{self.first}"
            )
        return lines

    def reasons(self) -> str:
        """Return how many files were passed over for each reason, with the first one's name."""
        return "; ".join(
            f"{why}: {counted(files.count, 'folder' if why in FOLDERS else 'file')}, "
            f"{'such as ' * (files.count > 1)}"
            f"{printable_line(files.first)}"
            for why, files in sorted(self.passed_over.items())
        )


def joined_lines(names: Iterable[str], tallies: Iterable[Tally]) -> list[str]:
    """Return the lines of all sources' tallies. With several sources, each line names its own."""
    pairs = list(zip(names, tallies, strict=True))
    return [
        f"{name}: {line}" if len(pairs) > 1 else line
        for name, tally in pairs
        for line in tally.lines()
    ]


def _what(kind: str, amount: Amount) -> str:
    return f"{counted(amount.files, 'file')} of {kind}" if amount.files else kind


def _size(num_bytes: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return counted(num_bytes, "byte")
