"""The progress bar that is shown while a source is tokenized."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Column

from moebius.data.formats import TEXT, SourceFile
from moebius.data.output import Output


@contextmanager
def progress_bar(files: Sequence[SourceFile], task: str) -> Iterator[Callable[[int], None]]:
    """Show a bar on stderr inside the with block; yield a function that adds bytes of text to it.

    `files` are those of the source, none for a dataset on the Hugging Face hub; `task` says what
    the bar is for. The bar shows no total if the bytes of text are not known beforehand, as for
    compressed files, rows with several fields and datasets on the hub.
    """
    is_plain = all(file.format.kind == TEXT and not file.format.compressions for file in files)
    total = sum(file.state[2] for file in files) if files and is_plain else None
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(table_column=Column(no_wrap=True)),  # a bar that wraps leaves copies behind
        TransferSpeedColumn(table_column=Column(no_wrap=True)),
    )
    console = Console(file=cast(Any, Output(sys.stderr)))
    with Progress(*columns, transient=True, console=console) as bar:
        number = bar.add_task(task, total=total)
        yield lambda num_bytes: bar.advance(number, num_bytes)
