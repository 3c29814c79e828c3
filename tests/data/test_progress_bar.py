"""The bar counts bytes of text on stderr, with a total where it is known."""

import json
import re
import sys

import pytest

from moebius.data.inventory import inventory
from moebius.data.progress_bar import progress_bar
from tests.data.corpora import configure
from tests.pipes import closed_pipe


@pytest.fixture(autouse=True)
def on_a_terminal(monkeypatch):
    """Make the bar draw as on a wide terminal, though stderr is captured."""
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("TTY_INTERACTIVE", "1")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")


def test_bytes_of_files_have_a_total(tmp_path, capsys):
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "a.md").write_text("some text\n" * 2_210)
    (folder / "b.txt").write_text("é" * 500)
    total = 22_100 + 1000
    with progress_bar(inventory(configure(folder)).files, "tokenizing") as advance:
        advance(1000)
        advance(total - 1000)
    out, err = capsys.readouterr()
    assert out == ""
    assert "tokenizing" in err and f"{total / 1000:.1f}/{total / 1000:.1f} kB" in err


@pytest.mark.parametrize("kind", ["rows.parquet", "rows.PARQUET", "a.jsonl", "a.NDJSON", "hub"])
def test_text_of_unknown_length_has_no_total(tmp_path, kind, capsys):
    source = tmp_path / "source" / kind
    source.parent.mkdir()
    source.write_bytes(b"compressed")
    (tmp_path / "source" / "plain.txt").write_text("text")
    config = configure(source, source="hf:someone/something" if kind == "hub" else str(source))
    with progress_bar(inventory(config).files, "tokenizing") as advance:
        advance(700)
        advance(77)
    assert "777/? bytes" in capsys.readouterr().err


def test_one_compressed_file_in_a_folder_makes_the_total_unknown(source, capsys):
    source.with_name("rows.parquet").write_bytes(b"compressed")
    with progress_bar(inventory(configure(source.parent)).files, "tokenizing") as advance:
        advance(777)
    assert "777/? bytes" in capsys.readouterr().err


def test_an_error_inside_ends_the_bar(source, capsys):
    with pytest.raises(KeyError), progress_bar(inventory(configure(source)).files, "tokenizing"):
        raise KeyError
    assert "\x1b[?25h" in capsys.readouterr().err  # the cursor is shown again


def test_a_terminal_that_is_gone_does_not_end_the_work(source, monkeypatch):
    """Hours of tokenizing would be lost."""
    monkeypatch.setattr(sys, "stderr", closed_pipe())
    with progress_bar(inventory(configure(source)).files, "tokenizing") as advance:
        advance(9)


def test_where_stderr_is_no_terminal_nothing_is_drawn_over(source, monkeypatch, capsys):
    monkeypatch.setenv("TTY_COMPATIBLE", "0")
    source.write_text(json.dumps({"text": "some text"}))
    with progress_bar(inventory(configure(source)).files, "tokenizing") as advance:
        advance(9)
    assert "\x1b" not in capsys.readouterr().err


@pytest.mark.parametrize("width", [16, 24, 40, 60, 80])
def test_the_bar_is_one_row_of_the_terminal(width, source, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    source.write_text("some text\n" * 10**6)
    with progress_bar(inventory(configure(source)).files, "tokenizing") as advance:
        advance(10**6)
        capsys.readouterr()
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().err)
    lines = [line for line in re.split("[\r\n]", text) if line.strip()]
    assert lines and all(line.startswith("token") for line in lines)  # no row that is wrapped
    assert all(len(line) <= width for line in lines)
