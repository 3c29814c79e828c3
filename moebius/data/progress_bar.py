"""The progress bar that is shown while a source is tokenized."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from moebius.config import DataConfig
from moebius.data.output import Output
from moebius.data.rows import LINE_SUFFIXES, PARQUET_SUFFIXES
from moebius.data.sources import source_files


@contextmanager
def progress_bar(config: DataConfig) -> Iterator[Callable[[int], None]]:
    """Show a bar on stderr inside the with block; yield a function that adds bytes of text to it.

    The bar shows no total if the bytes of text are not known beforehand, as for rows of JSON or
    Parquet, compressed files and datasets on the Hugging Face hub.
    """
    files = source_files(config)
    has_rows = any(file.suffix.lower() in LINE_SUFFIXES | PARQUET_SUFFIXES for file in files)
    total = None if has_rows or not files else sum(file.stat().st_size for file in files)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    console = Console(file=cast(Any, Output(sys.stderr)))
    with Progress(*columns, transient=True, console=console) as bar:
        task = bar.add_task("tokenizing", total=total)
        yield lambda num_bytes: bar.advance(task, num_bytes)
