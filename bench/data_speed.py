"""What the data path delivers: tokenising, the loader, mixing, and the memory that one long document takes.

    python bench/data_speed.py            minutes on two cores; nothing is left behind

Tokenising counts bytes of the standard library's text, read, tokenised and written, with a tokenizer that is already trained.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet

from moebius.config import DataConfig
from moebius.data import Batches, Corpus, Tokenizer, documents, prepare
from moebius.data.workers import cores

VOCABULARIES = (4_096, 32_768)
BATCHES = ((16, 2048), (64, 1024))
LOADER_SECONDS = 3.0
LONG_BYTES = 200_000_000


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for vocabulary in VOCABULARIES:
            _tokenising(Path(folder), vocabulary)
        _loader(Path(folder))
        _long_documents(Path(folder))


def _tokenising(folder: Path, vocabulary: int) -> None:
    config = DataConfig(cache=str(folder / "cache"), vocab_size=vocabulary)
    tokenizer = prepare(config, vocabulary).tokenizer
    file = folder / f"{vocabulary}.json"
    tokenizer.save(file)
    texts = [document.text for document in documents(config)]
    size = sum(len(text.encode()) for text in texts)
    print(f"{size / 1e6:.1f} MB of text, {vocabulary:,} ids, MB/s: ", end="")
    encode = _seconds(lambda: Tokenizer.load(file).encode_batch(texts))
    library = _seconds(lambda: [tokenizer.encode(text) for text in texts[::10]])
    tenth = sum(len(text.encode()) for text in texts[::10])
    figures = [f"one core {size / encode / 1e6:.2f} (`tokenizers` alone {tenth / library / 1e6:.2f})"]
    for workers in sorted({1, 2, cores()}):
        took = _seconds(lambda workers=workers: _prepared(folder, file, workers))
        figures.append(f"whole preparation, {workers} worker{'s' * (workers > 1)} {size / took / 1e6:.2f}")
    print("; ".join(figures), flush=True)


def _prepared(folder: Path, tokenizer: Path, workers: int) -> Corpus:
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        return prepare(DataConfig(cache=cache, tokenizer=str(tokenizer), workers=workers), 2**20)


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _loader(folder: Path) -> None:
    stdlib = DataConfig(cache=str(folder / "cache"), vocab_size=VOCABULARIES[0])
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": document.text}) + "\n" for document in documents(stdlib)))
    mixed = DataConfig(cache=str(folder / "cache"), vocab_size=VOCABULARIES[0], source=f"python-stdlib,{rows}", weights=(3, 1))
    for name, config in (("one source", stdlib), ("two sources", mixed)):
        corpus = prepare(config, VOCABULARIES[0])
        for batch_size, seq_len in BATCHES:
            batches = Batches(corpus.train, seq_len, batch_size, seed=0)
            steps, start = 0, time.perf_counter()
            while (took := time.perf_counter() - start) < LOADER_SECONDS:
                batches.at(steps)
                steps += 1
            rate = steps * batch_size * seq_len / took
            print(f"loader, {name}, {batch_size} x {seq_len}: {rate / 1e6:.0f} million tokens/s", flush=True)


def _long_documents(folder: Path) -> None:
    line = "A line of an endless document, with 1234 numbers and some words.\n"
    text = line * (LONG_BYTES // len(line))
    rows, table = folder / "long.jsonl", folder / "long.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["short", text]}), table)
    _peak("a Parquet cell", table, folder)
    for name, mark in (("a JSON line", ""), ("a JSON line with one emoji (4 bytes a character in Python)", "\U0001f600")):
        rows.write_text("".join(json.dumps({"text": each}, ensure_ascii=False) + "\n" for each in ("short", mark + text)))
        _peak(name, rows, folder)


def _peak(name: str, source: Path, folder: Path) -> None:
    """Prints the most memory that a preparation and its workers have together."""
    config = {"source": str(source), "cache": str(folder / "cache"), "vocab_size": 4096}
    imports = "from moebius.config import DataConfig; from moebius.data import prepare"
    start, peak = time.perf_counter(), 0.0
    process = subprocess.Popen([sys.executable, "-c", f"{imports}; prepare(DataConfig(**{config}), 4096)"])
    while process.poll() is None:
        peak = max(peak, _resident(process.pid))
        time.sleep(0.02)
    assert process.returncode == 0
    took = time.perf_counter() - start
    print(f"{name} of {LONG_BYTES / 1e6:.0f} MB: {took:.0f} s, peak {peak:.2f} GB in all processes", flush=True)


def _resident(pid: int) -> float:
    """GB of a process and those below it."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for task in Path(f"/proc/{pid}/task").iterdir():  # a worker is started by a thread
            if task.name != str(pid):
                children += (task / "children").read_text().split()
    except OSError:  # it has ended
        return 0.0
    return pages * resource.getpagesize() / 1e9 + sum(_resident(int(child)) for child in children)


if __name__ == "__main__":
    main()
