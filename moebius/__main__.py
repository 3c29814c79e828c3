"""`python -m moebius`."""

from moebius.cli import main

main()
