"""Ingesting writes the same bytes for any number of workers and after any number of kills."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import pytest
import tokenizers

from moebius.config import DataConfig
from moebius.data.chunk import DOCUMENT, Chunk
from moebius.data.ingest import BATCH_BYTES, PIECE_BYTES, Ingested, _in_batches, ingest
from moebius.data.long_text import LongText, parts_of
from moebius.data.packing import Piece, Rules
from moebius.data.record import RECORD_FILE
from moebius.data.sources import Document, Reading
from moebius.data.tally import Amount, Tally
from moebius.data.tokenizer import Tokenizer, prepare_tokenizer
from tests.data.corpora import names_in


def some_documents(count: int = 400) -> list[Document]:
    return [
        Document(f"document {n}: é{'x' * (n % 7)} = {n * n}\n" * (1 + n % 9), f"row {n}")
        for n in range(count)
    ]


@pytest.fixture
def tokenizer() -> Tokenizer:
    return prepare_tokenizer(DataConfig(), 400, [document.text for document in some_documents()])


@pytest.fixture
def small_batches(monkeypatch):
    """Make batches and record intervals so small that a small source has many of them."""
    monkeypatch.setattr("moebius.data.ingest.BATCH_BYTES", 3000)
    monkeypatch.setattr("moebius.data.ingest.RECORD_INTERVAL_BYTES", 3000)


def fill(
    folder: Path, tokenizer: Tokenizer, documents: list[Document], num_workers: int = 1, **settings
) -> Ingested:
    folder.mkdir(exist_ok=True)
    tokenizer.save(folder / "tokenizer.json")
    return ingest(
        folder, lambda: chunks_of(documents), tokenizer, Rules(0.2), num_workers, **settings
    )


def chunks_of(documents: Iterable[Document]) -> Iterator[tuple[Chunk, Reading]]:
    """Yield the documents as if they were rows of a file. Long ones are long texts."""
    reading = Reading(DataConfig(), Tally(), "", Amount())
    for text, origin in documents:
        data = text.encode() if len(text) < 2000 else LongText(partial(parts_of, text))
        yield Chunk(DOCUMENT, data, origin), reading


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("num_workers", [2, 3])
def test_the_bytes_do_not_depend_on_the_number_of_workers(
    tmp_path, tokenizer, small_batches, num_workers
):
    by_one = fill(tmp_path / "one", tokenizer, some_documents())
    by_several = fill(tmp_path / "several", tokenizer, some_documents(), num_workers)
    assert by_one == by_several
    assert contents(tmp_path / "one") == contents(tmp_path / "several")
    assert RECORD_FILE not in contents(tmp_path / "one")


@pytest.mark.parametrize("stop_at", [1, 50, 123, 350])
def test_what_a_killed_process_recorded_is_not_tokenized_again(
    tmp_path, tokenizer, small_batches, monkeypatch, stop_at
):
    documents = some_documents()

    def killed():
        yield from documents[:stop_at]
        raise SystemExit

    (tmp_path / "killed").mkdir()
    tokenizer.save(tmp_path / "killed" / "tokenizer.json")
    with pytest.raises(SystemExit):
        ingest(tmp_path / "killed", lambda: chunks_of(killed()), tokenizer, Rules(0.2), 1)
    record = tmp_path / "killed" / RECORD_FILE
    recorded = json.loads(record.read_text())["documents"] if record.exists() else 0
    assert (recorded > 0) == (stop_at > 1)
    encoded: list[str] = []
    original = Tokenizer.encode_batch

    def noted(self, texts):
        encoded.extend(texts)
        return original(self, texts)

    monkeypatch.setattr(Tokenizer, "encode_batch", noted)
    advanced: list[int] = []
    resumed = fill(tmp_path / "killed", tokenizer, documents, advance=advanced.append)
    assert encoded == [document.text for document in documents[recorded:]]
    assert sum(advanced) == sum(len(document.text.encode()) for document in documents)
    assert resumed == fill(tmp_path / "whole", tokenizer, documents)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    "change",
    [
        "another document",
        "fewer documents",
        "damaged record",
        "another fraction",
        "counts that are text",
        "nested too deeply",
        "no shard",
        "a short shard",
    ],
)
def test_a_record_that_does_not_fit_is_not_continued(tmp_path, tokenizer, small_batches, change):
    documents = some_documents()

    def killed():
        yield from documents[:300]
        raise SystemExit

    folder = tmp_path / "killed"
    folder.mkdir()
    tokenizer.save(folder / "tokenizer.json")
    with pytest.raises(SystemExit):
        fraction = 0.3 if change == "another fraction" else 0.2
        ingest(folder, lambda: chunks_of(killed()), tokenizer, Rules(fraction), 1)
    if change == "another document":
        documents[3] = Document("another", "row 3")
    elif change == "fewer documents":
        documents = documents[:20]
    elif change == "damaged record":
        (folder / RECORD_FILE).write_text('{"documents": 3}')
    elif change == "counts that are text":
        values = json.loads((folder / RECORD_FILE).read_text())
        (folder / RECORD_FILE).write_text(json.dumps(values | {"documents": "3"}))
    elif change == "nested too deeply":
        (folder / RECORD_FILE).write_text("[" * 100_000)
    elif change == "no shard":
        (folder / "train-00000.bin").unlink()
    elif change == "a short shard":
        os.truncate(folder / "train-00000.bin", 10)
    fill(folder, tokenizer, documents)
    fill(tmp_path / "whole", tokenizer, documents)
    assert contents(folder) == contents(tmp_path / "whole")


def test_a_long_document_in_pieces_is_one_document(
    tmp_path, tokenizer, small_batches, monkeypatch
):
    documents = [
        Document("".join(document.text for document in some_documents()), "one"),
        Document("two", "two"),
    ]
    whole = fill(tmp_path / "whole", tokenizer, documents)
    monkeypatch.setattr("moebius.data.tokenizer.PIECE_CHARACTERS", 2000)
    pieces = fill(tmp_path / "pieces", tokenizer, documents, 2)
    assert whole == pieces
    assert sum(split.documents for split in pieces.splits.values()) == 2
    assert contents(tmp_path / "whole") == contents(tmp_path / "pieces")


KILLED = """
import sys
from pathlib import Path
from moebius.config import DataConfig
from moebius.data import prepare
module = sys.modules["moebius.data.ingest"]
module.BATCH_BYTES, module.RECORD_INTERVAL_BYTES = 20_000, 100_000
sys.modules["moebius.data.line_rows"].CHUNK_BYTES = 5_000
print(prepare(DataConfig(**eval(sys.argv[1])), 300).folder)
"""


@pytest.mark.heavy
def test_a_preparation_killed_at_any_time_ends_with_the_same_bytes(tmp_path):
    source = tmp_path / "rows.jsonl"
    source.write_text(
        "".join(
            json.dumps({"text": f"{n} é some words of document {n * n} " * 40}) + "\n"
            for n in range(3000)
        )
    )

    def command(cache: str, num_workers: int) -> list[str]:
        settings = {
            "source": str(source),
            "tokenizer": "bytes",
            "cache": str(tmp_path / cache),
            "workers": num_workers,
        }
        return [sys.executable, "-c", KILLED, repr(settings)]

    whole = subprocess.run(
        command("whole", 1), capture_output=True, text=True, check=True
    ).stdout.strip()
    kills, folder, process = 0, "", None
    for attempt in range(100):
        process = subprocess.Popen(
            command("killed", 1 + attempt % 3),
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            folder = process.communicate(timeout=0.4 + 0.15 * attempt)[0].strip()
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
    assert process is not None and process.returncode == 0
    assert kills > 0
    assert contents(Path(folder)) == contents(Path(whole))
    assert names_in(tmp_path / "killed") == [Path(folder).name]


def test_lost_text_that_a_killed_process_found_is_not_forgotten(
    tmp_path, small_batches, monkeypatch
):
    inner = tokenizers.Tokenizer.from_str(
        prepare_tokenizer(DataConfig(tokenizer="bytes"), 257, []).to_json()
    )
    inner.normalizer = tokenizers.normalizers.Lowercase()
    lossy, documents = Tokenizer(inner, "lossy"), some_documents()
    documents[3] = Document("Upper", "row 3")

    def killed():
        yield from documents[:350]
        raise SystemExit

    folder = tmp_path / "killed"
    folder.mkdir()
    lossy.save(folder / "tokenizer.json")
    with pytest.raises(SystemExit):
        ingest(folder, lambda: chunks_of(killed()), lossy, Rules(0.2), 1)
    assert (folder / RECORD_FILE).exists()
    assert fill(folder, lossy, documents).lossy == "'Upper' becomes 'upper'"
    assert fill(tmp_path / "whole", lossy, documents, 2).lossy == "'Upper' becomes 'upper'"
    assert contents(folder) == contents(tmp_path / "whole")


def test_a_batch_has_a_bounded_number_of_pieces_however_short_they_are():
    documents = (Document("x", str(n)) for n in range(20_000))
    pieces = ((Piece(chunk), reading) for chunk, reading in chunks_of(documents))
    sizes = [len(batch.pieces) for batch, _ in _in_batches(pieces, 0)]
    assert sum(sizes) == 20_000
    assert max(sizes) <= BATCH_BYTES // PIECE_BYTES
