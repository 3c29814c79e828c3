"""Data sets that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote, as folders of files.

Their rows are in Arrow files. `state.json` lists those of a split, and `dataset_dict.json` lists
the splits, which are folders.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moebius.data.tally import METADATA
from moebius.errors import DataError

STATE, INFO, SPLITS = "state.json", "dataset_info.json", "dataset_dict.json"
TRAIN = "train"
STRANGE_FILE = "not part of the saved data set beside them"


class SavedSets:
    """Tells which files of a source belong to saved data sets but are not read.

    `root` is the folder that the source begins with. `copies` has the local copy of each file of
    a download by its name; None means that names are local paths.
    """

    def __init__(self, root: str, copies: Mapping[str, Path] | None = None):
        self._root = _full(root).rstrip("/") if copies is None else root.rstrip("/")
        self._copies = copies
        self._contents: dict[str, dict[str, Any]] = {}
        self._plain: dict[str, bool] = {}
        """Whether a folder is in no saved data set, by its name."""

    def reason(self, name: str) -> str:
        """Return why a file is not read, or "" if it is.

        The description of a data set is not read, nor are Arrow files that it does not list, such
        as the cached results of an earlier `map`. Only the split `train` is read if there is one
        and the source contains the whole data set, because the other splits are made for tests.
        Raises DataError if a listed file is missing.
        """
        inside = name[: name.rfind("/") + 1]
        if self._plain.get(inside):
            return ""
        folder, _, last = (_full(name) if self._copies is None else name).rpartition("/")
        parent, _, split = folder.rpartition("/")
        files = self._files_of(folder)
        if last == SPLITS and self._splits_of(folder):
            return METADATA
        if files and last in (STATE, INFO):
            return METADATA
        self._plain[inside] = not any(
            map(self._read, (f"{folder}/{STATE}", f"{folder}/{SPLITS}", f"{parent}/{SPLITS}"))
        )
        splits = self._splits_of(parent) if f"{parent}/".startswith(f"{self._root}/") else []
        if TRAIN in splits and split in splits and split != TRAIN:
            return f"of the split {split!r} of a saved data set, of which only {TRAIN} is read"
        if files and last.endswith(".arrow") and last not in files:
            return STRANGE_FILE
        return ""

    def _files_of(self, folder: str) -> list[str]:
        """Return the names of the Arrow files of the split in a folder, if there is one."""
        state = self._read(f"{folder}/{STATE}")
        listed = state.get("_data_files")
        if not isinstance(listed, list):
            return []
        if state.get("_indices_files") or state.get("_indices_data_files"):
            raise DataError(
                f"{folder}: a data set saved by an old version of datasets, with a table of "
                "indices; load it and save it again"
            )
        names = [str(file.get("filename")) for file in listed if isinstance(file, dict)]
        for name in names:
            path = f"{folder}/{name}"
            if not (Path(path).exists() if self._copies is None else path in self._copies):
                raise DataError(f"{path}: missing, but {STATE} beside it lists this file")
        return names

    def _splits_of(self, folder: str) -> list[str]:
        splits = self._read(f"{folder}/{SPLITS}").get("splits")
        return [str(split) for split in splits] if isinstance(splits, list) else []

    def _read(self, name: str) -> dict[str, Any]:
        """Return the contents of a JSON file with an object, or {} if it is not one."""
        if name not in self._contents:
            path = Path(name) if self._copies is None else self._copies.get(name)
            try:
                values = json.loads(path.read_bytes()) if path else {}
            except (OSError, ValueError, RecursionError):
                values = {}
            self._contents[name] = values if isinstance(values, dict) else {}
        return self._contents[name]


def _full(path: str) -> str:
    return os.path.abspath(path)  # noqa: PTH100 (Path.absolute keeps ..)
