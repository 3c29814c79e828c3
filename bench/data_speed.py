"""Measure the data path: tokenizing, loading, mixing, and the memory that a long document takes.

    python bench/data_speed.py            minutes on two cores; nothing is left behind

Tokenizing is measured in bytes of the standard library's text that are read, tokenized and
written, with a tokenizer that has been trained before.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow
import pyarrow.parquet

from moebius.config import DataConfig
from moebius.data import Batches, Corpus, Tokenizer, documents, prepare
from moebius.hardware.processor import cores

VOCABULARIES = (4_096, 32_768)
BATCHES = ((16, 2048), (64, 1024))
"""Pairs of a batch size and a sequence length."""
LOADER_SECONDS = 3.0
LONG_BYTES = 200_000_000
"""Length of the long document."""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for vocabulary in VOCABULARIES:
            _tokenizing(Path(folder), vocabulary)
        _loader(Path(folder))
        _long_documents(Path(folder))


def _tokenizing(folder: Path, vocabulary: int) -> None:
    """Print how fast one core tokenizes, and how fast the whole preparation is."""
    config = DataConfig(cache=str(folder / "cache"), vocab_size=vocabulary)
    tokenizer = prepare(config, vocabulary).tokenizer
    file = folder / f"{vocabulary}.json"
    tokenizer.save(file)
    texts = [document.text for document in documents(config)]
    size = _num_bytes(texts)
    print(f"{size / 1e6:.1f} MB of text, {vocabulary:,} ids, MB/s: ", end="")
    rate = size / _seconds(lambda: Tokenizer.load(file).encode_batch(texts))
    sample = texts[::10]
    seconds_of_library = _seconds(lambda: [tokenizer.encode(text) for text in sample])
    rate_of_library = _num_bytes(sample) / seconds_of_library
    rates = [f"one core {rate / 1e6:.2f} (`tokenizers` alone {rate_of_library / 1e6:.2f})"]
    for workers in sorted({1, 2, cores()}):
        rate = size / _seconds(lambda workers=workers: _prepared(folder, file, workers))
        plural = "s" if workers > 1 else ""
        rates.append(f"whole preparation, {workers} worker{plural} {rate / 1e6:.2f}")
    print("; ".join(rates), flush=True)


def _num_bytes(texts: list[str]) -> int:
    return sum(len(text.encode()) for text in texts)


def _prepared(folder: Path, tokenizer: Path, workers: int) -> Corpus:
    """Return the standard library's text, prepared anew with a tokenizer from a file."""
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        return prepare(DataConfig(cache=cache, tokenizer=str(tokenizer), workers=workers), 2**20)


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _loader(folder: Path) -> None:
    """Print how many tokens per second are loaded from one source, and from a mixture of two."""
    stdlib = DataConfig(cache=str(folder / "cache"), vocab_size=VOCABULARIES[0])
    rows = folder / "rows.jsonl"
    lines = (json.dumps({"text": document.text}) + "\n" for document in documents(stdlib))
    rows.write_text("".join(lines))
    mixture = replace(stdlib, source=f"python-stdlib,{rows}", weights=(3, 1))
    for name, config in (("one source", stdlib), ("two sources", mixture)):
        corpus = prepare(config, VOCABULARIES[0])
        for batch_size, seq_len in BATCHES:
            batches = Batches(corpus.train, seq_len, batch_size, seed=0)
            steps, start = 0, time.perf_counter()
            while (seconds := time.perf_counter() - start) < LOADER_SECONDS:
                batches.at(steps * batch_size)
                steps += 1
            rate = steps * batch_size * seq_len / seconds
            print(
                f"loader, {name}, {batch_size} x {seq_len}: {rate / 1e6:.0f} million tokens/s",
                flush=True,
            )


def _long_documents(folder: Path) -> None:
    """Print the memory that is needed for one long document in different kinds of files."""
    line = "A line of an endless document, with 1234 numbers and some words.\n"
    text = line * (LONG_BYTES // len(line))
    rows, table = folder / "long.jsonl", folder / "long.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["short", text]}), table)
    _peak("a Parquet cell", table, folder)
    for name, prefix in (
        ("a JSON line", ""),
        ("a JSON line with one emoji (4 bytes per character in Python)", "\U0001f600"),
    ):
        documents = ("short", prefix + text)
        lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in documents)
        rows.write_text("".join(lines))
        _peak(name, rows, folder)


def _peak(name: str, source: Path, folder: Path) -> None:
    """Print the largest amount of memory that a preparation and its workers have together."""
    config = {"source": str(source), "cache": str(folder / "cache"), "vocab_size": 4096}
    imports = "from moebius.config import DataConfig; from moebius.data import prepare"
    code = f"{imports}; prepare(DataConfig(**{config}), 4096)"
    start, peak = time.perf_counter(), 0.0
    process = subprocess.Popen([sys.executable, "-c", code])
    while process.poll() is None:
        peak = max(peak, _resident(process.pid))
        time.sleep(0.02)
    assert process.returncode == 0
    seconds = time.perf_counter() - start
    size = f"{LONG_BYTES / 1e6:.0f} MB"
    print(f"{name} of {size}: {seconds:.0f} s, peak {peak:.2f} GB in all processes", flush=True)


def _resident(pid: int) -> float:
    """Return the memory of a process and of all its children, in units of 10^9 bytes."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for task in Path(f"/proc/{pid}/task").iterdir():  # a worker is started by a thread
            if task.name != str(pid):
                children += (task / "children").read_text().split()
    except OSError:  # the process has ended
        return 0.0
    return pages * resource.getpagesize() / 1e9 + sum(_resident(int(child)) for child in children)


if __name__ == "__main__":
    main()
