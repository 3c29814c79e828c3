"""The files of the repository that the tests of its layout and its language read."""

from pathlib import Path

import moebius

ROOT = Path(moebius.__file__).parent
REPOSITORY = ROOT.parent
FILES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py"))
"""The package, relative to its root."""
SCRIPTS = sorted(
    path.relative_to(REPOSITORY).as_posix()
    for folder in ("tests", "bench")
    for path in (REPOSITORY / folder).rglob("*.py")
)
"""The other Python files, relative to the repository."""
SOURCES = [f"moebius/{file}" for file in FILES] + SCRIPTS
"""All Python files, relative to the repository."""
PAGES = sorted(
    path.relative_to(REPOSITORY).as_posix()
    for path in (*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md"))
)
"""The documentation, relative to the repository."""
