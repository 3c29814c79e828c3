"""Configurations of small corpora, and functions that read prepared corpora back."""

import json
from pathlib import Path

from moebius.config import DataConfig
from moebius.data import Corpus, TokenStream
from moebius.data.file_hashes import RECORDS


def configure(source: Path, /, **settings) -> DataConfig:
    """Return a configuration of the source with a cache next to its folder.

    The tokenizer is `bytes`, of 257 ids, unless the settings say otherwise.
    """
    defaults = {
        "source": str(source),
        "tokenizer": "bytes",
        "cache": str(source.parents[1] / "cache"),
        "val_fraction": 0.1,
    }
    return DataConfig(**defaults | settings)


def configure_mixture(source: Path, **settings) -> DataConfig:
    """Return a configuration of three sources with weights 5, 3 and 2.

    They have 200, 300 and 100 documents; the first two have 100 documents in common.
    """
    files = [source]
    for name, first, count in (("b", 100, 300), ("c", 1000, 100)):
        files.append(source.with_name(f"{name}.jsonl"))
        rows = (
            json.dumps({"text": f"document {n} é " * 5}) + "\n"
            for n in range(first, first + count)
        )
        files[-1].write_text("".join(rows))
    return configure(source, source=", ".join(map(str, files)), weights=(5, 3, 2), **settings)


def texts(corpus: Corpus, stream: TokenStream) -> list[str]:
    """Return the documents of a split, cut at the separators."""
    ids_of_documents: list[list[int]] = []
    for token in stream.read(0, len(stream)).tolist():
        if token == corpus.tokenizer.end_of_text:
            ids_of_documents.append([])
        else:
            ids_of_documents[-1].append(token)
    return [corpus.tokenizer.decode(ids) for ids in ids_of_documents]


def names_in(cache: Path) -> list[str]:
    """Return the names of everything in the cache, which need not exist.

    The remembered hashes of files are left out: they are there or not, depending on the files'
    age.
    """
    names = [path.name for path in cache.iterdir()] if cache.exists() else []
    return [name for name in names if name != RECORDS]
