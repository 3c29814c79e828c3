"""A small source of documents for the tests of the whole preparation."""

import json
from pathlib import Path

import pytest


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A file of JSON lines with 200 distinct documents."""
    file = tmp_path / "source" / "rows.jsonl"
    file.parent.mkdir()
    file.write_text(
        "".join(json.dumps({"text": f"document {n} é " * 5}) + "\n" for n in range(200))
    )
    return file
