"""The same 40 rows as files of every kind, compressed in every way."""

import bz2
import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable

import pyarrow
import pyarrow.ipc
import pyarrow.parquet

ROWS = [{"text": f'row {n} é\nsecond "line", end', "id": n} for n in range(40)]
TEXTS = [row["text"] for row in ROWS]
MARK = b"\xef\xbb\xbf"


def _lines() -> bytes:
    return "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def _csv(separator: str) -> bytes:
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, ["id", "text"], delimiter=separator)
    writer.writeheader()
    writer.writerows(ROWS)
    return file.getvalue().encode()


def _table(write: Callable[[pyarrow.Table, io.BytesIO], None]) -> bytes:
    file = io.BytesIO()
    write(pyarrow.Table.from_pylist(ROWS), file)
    return file.getvalue()


def _arrow(is_stream: bool) -> bytes:
    def write(table: pyarrow.Table, file: io.BytesIO) -> None:
        new = pyarrow.ipc.new_stream if is_stream else pyarrow.ipc.new_file
        with new(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=9)

    return _table(write)


def _zstd(data: bytes) -> bytes:
    return pyarrow.Codec("zstd").compress(data, asbytes=True)


ARRAY = json.dumps(ROWS).encode()
CONTENTS: dict[str, bytes] = {
    "a.jsonl": _lines(),
    "marked.ndjson": MARK + _lines(),
    "lines.json": _lines(),
    "lines-in.txt": _lines(),
    "lines-without-a-suffix": _lines(),
    "array.json": ARRAY,
    "marked-array.json": MARK + ARRAY,
    "pretty.json": json.dumps(ROWS, indent=2).encode(),
    "pretty-objects.json": "\n".join(json.dumps(row, indent=1) for row in ROWS).encode(),
    "array-without-a-suffix": ARRAY,
    "comma.csv": _csv(","),
    "marked.csv": MARK + _csv(","),
    "semicolon.csv": _csv(";"),
    "tab.tsv": _csv("\t"),
    "UPPER.CSV": _csv(","),
    "a.parquet": _table(lambda table, file: pyarrow.parquet.write_table(table, file)),
    "parquet-without-a-suffix": _table(
        lambda table, file: pyarrow.parquet.write_table(table, file)
    ),
    "stream.arrow": _arrow(is_stream=True),
    "file.arrow": _arrow(is_stream=False),
    "arrow-named.bin": _arrow(is_stream=True),
}
"""Contents of files by name, all of which hold `ROWS`."""
COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": _zstd,
}
"""Functions that compress, by suffix."""
