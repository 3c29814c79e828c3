"""Streams that nobody reads any more."""

import io
import os


def closed_pipe(is_buffered: bool = True) -> io.TextIOWrapper:
    """Return a stream whose reader has gone."""
    reading, writing = os.pipe()
    os.close(reading)
    raw = io.FileIO(writing, "w")
    return io.TextIOWrapper(io.BufferedWriter(raw) if is_buffered else raw)
