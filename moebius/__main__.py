"""Runs the command line as `python -m moebius`."""

import sys

if not sys.flags.safe_path:
    # Python puts the working directory first, where a user's `queue.py` would hide the standard
    # library's. Nothing may be imported before this line.
    del sys.path[0]

from moebius.cli import main

main()
