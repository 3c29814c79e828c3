"""Expand paths that users write."""

import os
from pathlib import Path


def expanded(path: str) -> Path:
    """Return the path with a leading `~` or `~user` replaced by that user's home folder.

    The name of an unknown user stays as it is, where Path.expanduser would raise RuntimeError.
    """
    return Path(os.path.expanduser(path))  # noqa: PTH111
