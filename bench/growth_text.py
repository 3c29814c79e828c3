"""The rows of `growth.py` about text: what it costs to find, prepare, open and mix it."""

import json
import os
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from moebius.config import DataConfig
from moebius.data import Batches, prepare, reopen
from moebius.data.order import Mixture
from moebius.data.source_names import weighted_sources
from moebius.data.sources import documents as documents_in
from moebius.data.stream import MappedShard, Part, TokenStream
from moebius.data.tokenizer import Tokenizer

Costs = dict[str, float]
VOCABULARY = 4096
AGE_SECONDS = 3.2
"""Age from which on the hash of a file's contents is remembered, and a little more."""
EMOJI = "\U0001f600"


def folder_of_files(num_files: int) -> Costs:
    """Start with a folder of small files that has been prepared before."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "text")
        for number in range(num_files):
            file = folder / f"{number // 1000:03d}" / f"{number:07d}.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"This is text {number}.\n")
        time.sleep(AGE_SECONDS)
        config = DataConfig(source=str(folder), tokenizer="bytes", cache=f"{name}/cache")
        prepare(config, VOCABULARY)
        start = time.process_time()
        prepare(config, VOCABULARY)
        seconds = time.process_time() - start
        tracemalloc.start()
        prepare(config, VOCABULARY)
        return {"CPU s": seconds, "memory, MB": tracemalloc.get_traced_memory()[1] / 1e6}


def preparing(megabytes: int) -> Costs:
    """Prepare rows and plain text with two workers, and look at what their owner does."""
    costs: Costs = {}
    with tempfile.TemporaryDirectory() as name:
        words = _words(megabytes * 1_000_000)
        rows, files = Path(name, "rows.jsonl"), Path(name, "files")
        files.mkdir()
        with rows.open("w") as file:
            for number, start in enumerate(range(0, len(words), 4000)):
                text = f"{number} {words[start : start + 4000]}"
                file.write(json.dumps({"text": text}) + "\n")
        for number, start in enumerate(range(0, len(words), 16_000)):
            (files / f"{number}.txt").write_text(f"{number} {words[start : start + 16_000]}")
        given = _tokenizer(Path(name), words)
        time.sleep(AGE_SECONDS)
        for kind, source in (("JSON lines", rows), ("text files", files)):
            config = DataConfig(
                source=str(source), tokenizer=str(given), cache=f"{name}/{kind}", workers=2
            )
            start, owner = time.perf_counter(), time.process_time()
            prepare(config, VOCABULARY)
            costs[f"{kind}, owner's CPU s"] = time.process_time() - owner
            costs[f"{kind}, MB/s"] = megabytes / (time.perf_counter() - start)
    return costs


def documents(count: int) -> Costs:
    """Prepare rows of a few characters each."""
    with tempfile.TemporaryDirectory() as name:
        few, many = Path(name, "few.jsonl"), Path(name, "many.jsonl")
        for path, number in ((few, 2000), (many, count)):
            with path.open("w") as file:
                file.writelines(f'{{"text": "{n}"}}\n' for n in range(number))
        config = DataConfig(source=str(few), tokenizer="bytes", cache=f"{name}/cache", workers=2)
        prepare(config, VOCABULARY)
        with _peak_beyond() as memory:
            prepare(replace(config, source=str(many)), VOCABULARY)
        return {"owner's memory, MB": memory[0] / 1e6}


def bad_rows(count: int) -> Costs:
    """Read a JSON array and a CSV file whose rows have no text, and leave all of them out."""
    costs: Costs = {}
    with tempfile.TemporaryDirectory() as name:
        array, table = Path(name, "rows.json"), Path(name, "rows.csv")
        with array.open("w") as file:
            file.writelines(f'{"[" if n == 0 else ","}{{"text": {n}}}\n' for n in range(count))
            file.write("]")
        with table.open("w") as file:
            file.write("text,number\n")
            file.writelines(f"{n}\n" for n in range(count))
        for kind, source in (("JSON", array), ("CSV", table)):
            config = DataConfig(source=str(source), errors="skip", cache=f"{name}/{kind}")
            tracemalloc.start()
            assert not list(documents_in(config))
            costs[f"{kind}, memory, MB"] = tracemalloc.get_traced_memory()[1] / 1e6
            tracemalloc.stop()
    return costs


def huge_document(megabytes: int) -> Costs:
    """Prepare a JSON line with one emoji in it, and count what is tokenized."""
    costs: Costs = {}
    tokenized = 0
    original = Tokenizer.encode_batch

    def counted(self: Tokenizer, texts: list[str]) -> list[np.ndarray]:
        nonlocal tokenized
        tokenized += sum(len(text) for text in texts)
        return original(self, texts)

    Tokenizer.encode_batch = counted
    with tempfile.TemporaryDirectory() as name:
        text = _words(megabytes * 1_000_000)
        for kind, prefix in (("plain", ""), ("with an emoji", EMOJI)):
            source = Path(name, f"{kind}.jsonl")
            config = DataConfig(
                source=str(source), tokenizer="bytes", cache=f"{name}/{kind}", workers=1
            )
            source.write_text('{"text": "short"}\n{"text": "other"}\n')
            prepare(config, VOCABULARY)  # loads the libraries
            with source.open("w") as file:
                file.write('{"text": "short"}\n')
                json.dump({"text": prefix + text}, file, ensure_ascii=False)
            tokenized, size = 0, source.stat().st_size
            with _peak_beyond() as memory:
                prepare(config, VOCABULARY)
            costs[f"{kind}, memory, MB"] = memory[0] / 1e6
            costs[f"{kind}, tokenized, times its bytes"] = tokenized / size
    return costs


def opening(num_sources: int) -> Costs:
    """Open a corpus of sources with 64 MB of shards each, as every start of a run does."""
    with tempfile.TemporaryDirectory() as name:
        source = Path(name, "rows.jsonl")
        words = _words(32_000_000)
        with source.open("w") as file:
            for start in range(0, len(words), 8000):
                file.write(json.dumps({"text": words[start : start + 8000]}) + "\n")
        config = DataConfig(source=str(source), tokenizer="bytes", cache=f"{name}/cache")
        corpus = prepare(config, VOCABULARY)
        names = [f"source-{number}" for number in range(num_sources)]
        for folder in names:
            copy = Path(config.cache, folder)
            copy.mkdir()
            for file in corpus.folder.iterdir():
                os.link(file, copy / file.name)
        start = time.process_time()
        reopen(replace(config, source=",".join(names)), names, corpus.tokenizer)
        return {"CPU s": time.process_time() - start}


def mixing(num_sources: int) -> Costs:
    """Take apart the names of sources, mix them with uneven weights, and take a batch."""
    config = DataConfig(source=",".join(f"part-{n}/*.jsonl" for n in range(num_sources)))
    start = time.process_time()
    weighted_sources(config)
    names = time.process_time()
    weights = [1 / (n + 1.5) for n in range(num_sources)]
    Mixture(weights)
    mixed = time.process_time()
    length = 150_000
    tokens = np.broadcast_to(np.uint16(0), (num_sources * length,))
    parts = [Part(n * length, n * length + length, length, 1.0) for n in range(num_sources)]
    stream = TokenStream([MappedShard(Path("none"), tokens)], 10, num_sources, len(tokens), parts)
    batches = Batches(stream, 100, 1024, seed=0)
    built = time.process_time()
    batches.at(0)
    return {
        "names, CPU s": names - start,
        "mixture, CPU s": mixed - names,
        "batch of 1024, CPU s": time.process_time() - built,
    }


def _words(length: int) -> str:
    """Return a text of that many ASCII characters, with the words of a small vocabulary."""
    generator = np.random.default_rng(0)
    words = [
        "".join(chr(97 + c) for c in generator.integers(0, 26, n % 9 + 2)) for n in range(5000)
    ]
    chosen = generator.zipf(1.3, length // 6) % len(words)
    text = " ".join(words[number] for number in chosen)
    return (text * (length // len(text) + 1))[:length]


def _tokenizer(folder: Path, words: str) -> Path:
    """Return the file of a BPE that was trained on some of the words."""
    source = folder / "sample.txt"
    source.write_text(words[:2_000_000])
    config = DataConfig(source=str(source), cache=str(folder / "trained"), vocab_size=VOCABULARY)
    file = folder / "tokenizer.json"
    prepare(config, VOCABULARY).tokenizer.save(file)
    return file


@contextmanager
def _peak_beyond() -> Iterator[list[float]]:
    """Yield a list that gets the most bytes that the process had beyond what it has now."""
    sizes: list[float] = []
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(0.002):
            lines = Path("/proc/self/status").read_text().splitlines()
            sizes.append(sum(1024.0 * int(line.split()[1]) for line in lines if "RssAnon" in line))

    thread = threading.Thread(target=watch)
    result: list[float] = []
    thread.start()
    time.sleep(0.1)
    before = sizes[-1]
    yield result
    is_over.set()
    thread.join()
    result.append(max(sizes) - before)
