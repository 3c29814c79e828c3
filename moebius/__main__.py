"""Runs the command line as `python -m moebius`."""

from moebius.cli import main

main()
