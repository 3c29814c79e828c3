"""The progress bar that is shown while a source is tokenized."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from moebius.config import DataConfig
from moebius.data.formats import TEXT
from moebius.data.output import Output
from moebius.data.sources import inventory, on_hub


@contextmanager
def progress_bar(config: DataConfig) -> Iterator[Callable[[int], None]]:
    """Show a bar on stderr inside the with block; yield a function that adds bytes of text to it.

    The bar shows no total if the bytes of text are not known beforehand, as for compressed files,
    rows with several fields and datasets on the Hugging Face hub.
    """
    files = [] if on_hub(config) else inventory(config)
    is_plain = all(file.format.kind == TEXT and not file.format.compressions for file in files)
    total = sum(file.path.stat().st_size for file in files) if files and is_plain else None
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
