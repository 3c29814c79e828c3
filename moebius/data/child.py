"""Start a Python process that runs code of this package, whatever the working directory holds.

By default, such a process would import a user's `queue.py` instead of the standard library's.
"""

import sys
from pathlib import Path

START = "import sys; sys.path.insert(0, {root!r}); import moebius; del sys.path[0]; {code}"
"""The package is imported from where this process has it from. Its folder does not stay in the
path, because it could hide modules of the standard library as well."""


def python_command(code: str, *arguments: str) -> list[str]:
    """Return the command of a Python process that runs `code`, which may import this package.

    `arguments` are its `sys.argv[1:]`. Modules in the working directory cannot be imported.
    """
    root = str(Path(__file__).resolve().parents[2])
    return [sys.executable, "-P", "-c", START.format(root=root, code=code), *arguments]
