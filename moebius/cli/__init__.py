"""The command line: a module for each command, and the machinery they share."""

from moebius.cli.main import main

__all__ = ["main"]
