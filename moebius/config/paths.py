"""Expand paths that users write, and find names that are not taken."""

import os
import tempfile
from pathlib import Path

from moebius.config.printable import print_note


def expanded(path: str) -> Path:
    """Return the path with a leading `~` or `~user` replaced by that user's home folder.

    Without a home folder, as in some containers, `~` is a folder of this user below the system's
    folder for temporary files, and one line on stderr says so. The name of an unknown user stays
    as it is, where Path.expanduser would raise RuntimeError.
    """
    first, *rest = Path(path).parts or ("",)
    if first == "~" and not _has_home():
        return Path(_substitute_for_home(), *rest)
    return Path(os.path.expanduser(path))  # noqa: PTH111


def free_path(path: Path) -> Path:
    """Return the path or, if something has that name, the first of PATH-2, PATH-3, … that is free.

    Another process may take the name before it is used.
    """
    number, place = 1, path
    while os.path.lexists(place):
        number += 1
        place = path.with_name(f"{path.name}-{number}")
    return place


def _has_home() -> bool:
    """Return whether the user has a home folder, which is not the working directory or /."""
    home = os.path.expanduser("~")  # noqa: PTH111
    return Path(home).is_absolute() and home != "/"


def _substitute_for_home() -> Path:
    folder = Path(tempfile.gettempdir(), f"home-of-user-{os.getuid()}")
    print_note(f"there is no home folder (HOME names none); ~ is {folder}")
    return folder
