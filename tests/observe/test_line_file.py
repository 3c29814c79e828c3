"""Files of JSON lines are cut at an offset, with little memory, wherever their pieces end."""

import json
import tracemalloc
from pathlib import Path

import pytest

from moebius.observe import line_file
from moebius.observe.line_file import cut, last_line, read_lines
from tests.observe.made_up import metrics_of


def text_of(step: int) -> bytes:
    return json.dumps(metrics_of(step=step).to_json()).encode() + b"\n"


@pytest.mark.parametrize("piece", [1, 50, 700, 1 << 18])
@pytest.mark.parametrize("torn", [b"", b'{"step": 7, "tok', b"\0" * 60 + b"\n"])
def test_the_size_of_a_piece_does_not_matter(piece, torn, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(line_file, "PIECE", piece)
    path = tmp_path / "metrics.jsonl"
    texts = [text_of(step) for step in range(1, 7)]
    path.write_bytes(b"".join([*texts, torn]))
    last = last_line(path)
    assert last is not None and last["step"] == 6
    reports: list[str] = []
    cut(path, 4, reports.append)
    assert path.read_bytes() == b"".join(texts[:4])
    assert len(reports) == (torn[-1:] == b"\n")
    assert [line["step"] for line in read_lines(path)] == [1, 2, 3, 4]


def test_a_line_that_was_appended_to_the_beginning_of_another_is_damaged(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(text_of(1) + text_of(2)[:40] + text_of(3) + text_of(4))
    reports: list[str] = []
    cut(path, 9, reports.append)
    assert path.read_bytes() == text_of(1) + text_of(4) and len(reports) == 1


def test_the_memory_of_cutting_does_not_grow_and_few_lines_are_parsed(tmp_path: Path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"".join(map(text_of, range(1, 5_001))))
    size = path.stat().st_size
    parsed: list[bytes] = []
    parse = line_file.parsed
    monkeypatch.setattr(
        line_file, "parsed", lambda *given: (parsed.append(given[0]), parse(*given))[1]
    )
    tracemalloc.start()
    cut(path, 4_990, pytest.fail)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 * line_file.PIECE < size
    assert size - path.stat().st_size == 10 * len(text_of(5_000))
    assert 1 <= len(parsed) < 5
