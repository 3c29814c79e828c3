"""Read data sets and tokenizers from the Hugging Face hub."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from moebius.data.chunk import Origin
from moebius.data.messages import is_unreachable, one_line
from moebius.data.rows import row_text
from moebius.data.saved_sets import SPLITS, STATE
from moebius.data.text_files import Refuse
from moebius.errors import DataError

HUGGING_FACE = "hf:"
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
"""Matches what may be a name on the hub."""
TOKENIZER_FILE = "tokenizer.json"
ANSWER_SECONDS = 4
"""How long the hub may take to say whether a data set or a file exists."""


def local_data_set(source: str) -> Path | None:
    """Return the folder that `hf:FOLDER` names if `save_to_disk` wrote it, or None.

    Such a folder is read as files, because `datasets` does not load it by its name.
    """
    folder = Path(source.removeprefix(HUGGING_FACE))
    # Unlike Path.is_file, this raises no error, which would name a file that need not exist.
    is_saved = any(os.path.isfile(folder / name) for name in (STATE, SPLITS))  # noqa: PTH113
    return folder if source.startswith(HUGGING_FACE) and is_saved else None


def hub_rows(source: str, field: str, refuse: Refuse) -> Iterator[tuple[str, Origin]]:
    """Yield the text and the origin (source and row number) of each row of `hf:NAME[:SUBSET]`.

    NAME is a dataset on the Hugging Face hub, whose split "train" is streamed, or a local folder.
    A row that cannot be read is reported to `refuse`. Raises DataError for any error of the
    library: no such dataset, no network, damaged files.
    """
    import datasets
    import huggingface_hub

    name, _, subset = source.removeprefix(HUGGING_FACE).partition(":")
    if not name:
        raise DataError(f"data.source={source!r}: must be hf:NAME or hf:NAME:SUBSET")
    try:
        if not Path(name).exists() and not huggingface_hub.constants.HF_HUB_OFFLINE:
            # If there is no network or no such dataset, load_dataset would print retries for half
            # a minute before it fails.
            huggingface_hub.HfApi().dataset_info(name, timeout=ANSWER_SECONDS)
        rows = datasets.load_dataset(name, subset or None, split="train", streaming=True)
        for number, row in enumerate(rows, start=1):
            yield from row_text(row, field, f"{source}: row {number}", refuse)
    except DataError:
        raise
    except Exception as error:  # errors of the library itself and of httpx, fsspec and pyarrow
        raise DataError(_message(f"data.source={source!r}", error)) from None


def hub_tokenizer(setting: str) -> Path:
    """Return a local copy of the tokenizer.json that `hf:NAME` names.

    A copy in the hub's own cache is used without asking the hub, so a run can be resumed without a
    network and never gets another tokenizer. Otherwise the file is downloaded. Raises DataError if
    there is no such file or the hub cannot be reached.
    """
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    name = setting.removeprefix(HUGGING_FACE)
    try:
        copy = huggingface_hub.try_to_load_from_cache(name, TOKENIZER_FILE)
        if isinstance(copy, str):
            return Path(copy)
        if not huggingface_hub.constants.HF_HUB_OFFLINE:
            huggingface_hub.HfApi().model_info(name, timeout=ANSWER_SECONDS)
        return Path(
            huggingface_hub.hf_hub_download(name, TOKENIZER_FILE, etag_timeout=ANSWER_SECONDS)
        )
    except Exception as error:
        if isinstance(error, EntryNotFoundError) and not isinstance(
            error, LocalEntryNotFoundError
        ):
            raise DataError(
                f"data.tokenizer={setting!r}: there is no {TOKENIZER_FILE} in {name} on the hub"
            ) from None
        raise DataError(_message(f"data.tokenizer={setting!r}", error)) from None


def _message(setting: str, error: Exception) -> str:
    what = f"{type(error).__name__}: {one_line(error)}"
    if is_unreachable(error):
        return f"{setting}: the Hugging Face hub could not be reached ({what})"
    return f"{setting}: {what}"
