"""Rows are told from text by what they look like, and neither prose nor code is taken for rows."""

import json

import pytest

from moebius.data.formats import TEXT, identify
from moebius.data.row_syntax import CSV, JSON, JSON_LINES

OBJECTS = "\n".join(json.dumps({"text": f"a\u2028{n}", "id": n}, indent=2) for n in range(9))
LONG = json.dumps([{"text": "x" * 90_000}], indent=2)[2:-2]
STRINGS = json.dumps(["one", "two, three", "four"], indent=1)
TABLE = 'id,title,body\n1,a,"one,\ntwo"\n2,b,three\n3,c,four\n'

ROWS = [
    *[(name, OBJECTS, JSON) for name in ("rows", "a.txt", "a.json.bak", "a.part", "a.dat")],
    ("a", OBJECTS * 2000, JSON),
    ("a", OBJECTS.splitlines()[0] + '"text": "one object"}', JSON_LINES),
    ("a.txt", '{\n "text": "one object"\n}\n', JSON),
    ("a.txt", '{\n "text": "it is cut', JSON),
    ("a.txt", LONG, JSON),
    ("a.txt", '{"text": "a"}{"text": "b"}', JSON),
    ("a.txt", '{"text": "a"},\n{"text": "b"},\n', JSON),
    *[(name, STRINGS, JSON) for name in ("a", "a.txt", "a.json", "a.JSON.old")],
    ("a", '["a", 1]\n["b", 2]\n', JSON),
    ("a", json.dumps(["x" * 300] * 1000), JSON),
    ("a", '{"text": "a\u2028b"}\n{"text": "c"}\n', JSON_LINES),
    ("rows.jsonl.1", "anything", JSON_LINES),
    *[
        (name, TABLE, CSV)
        for name in ("table", "a.txt", "a.csv.bak", "a.csv.2", "a.CSV~", "a.csv.txt", "a.md")
    ],
    ("a", TABLE.replace(",", "\t"), CSV),
    ("a", TABLE.replace(",", ";"), CSV),
    ("a", TABLE * 5000, CSV),
    ("a", "text,text\na,b\n", CSV),
    ("a", '"text","id"\r\n"a, b","1"\r\n', CSV),
    ("a", "Full name,text\n" + "A B,hello\n" * 3, CSV),
    ("a", TABLE + "3,d,e,f\n" + "4,e,five\n" * 9, CSV),  # one bad row, which is refused when read
    ("a.csv.part", "anything", CSV),
    ("a.jsonl.download", "anything", JSON_LINES),
]
TEXTS = [
    ("a.txt", "Roses are red, violets are blue,\nSugar is sweet, and so are you.\n" * 9),
    ("a.txt", "Hello, world\nFoo, bar\nBaz, qux\n"),
    ("a.txt", "text, more text\nand more, and more\n"),
    ("a.txt", '["The title in brackets"] And so it begins, he said, "[sic]".\n'),
    ("a.txt", '["Once upon a time there was'),
    ("a.txt", '{"name": whatever}\n'),
    ("a.txt", "[1, 2, 3]\n"),
    ("a.txt", "[[Link]] to another page of a wiki\n"),
    ("a.txt", "1,2,3\n4,5,6\n7,8,9\n"),
    ("a.txt", "the,of,and,to\n"),
    ("a.md", "| id | text |\n|----|------|\n| 1  | a    |\n"),
    ("a.py", "import os,sys\nprint(os,sys)\n"),
    ("a.py", "from a import b,c\nb(1,2)\nc(3,4)\n"),
    ("a.py", '{"a": 1}["a"]\n'),
    ("a.py", '["a", "b"][0]\n["c"]\n'),
    ("a.js", "var a;var b\na = 1;b = 2\n"),
    ("a.sh", "ls -l | wc\ncat a | sort\n"),
    ("Makefile", "all:\tmain\n\tcc -o main main.c\n"),
    ("a.ipynb", '{\n "cells": [],\n "nbformat": 4\n}\n'),
    ("composer.lock", '{\n "packages": []\n}\n'),
    ("a.txt.bak", "Some text, and more.\n"),
    ("foo.1", ".TH FOO 1\n"),
]


@pytest.mark.parametrize(("name", "contents", "kind"), ROWS)
def test_rows_are_recognized(tmp_path, name, contents, kind):
    (tmp_path / name).write_text(contents, newline="")
    assert identify(tmp_path / name, name).kind == kind


@pytest.mark.parametrize(("name", "contents"), TEXTS)
def test_prose_and_code_are_not_taken_for_rows(tmp_path, name, contents):
    (tmp_path / name).write_text(contents, newline="")
    assert identify(tmp_path / name, name).kind == TEXT
    more = "and more, with commas; and others | of them\n" * 3000
    (tmp_path / name).write_text(f"\ufeff{contents}{more}", encoding="utf-8", newline="")
    assert identify(tmp_path / name, name).kind == TEXT


@pytest.mark.parametrize(("name", "contents", "kind"), ROWS)
def test_everything_is_text_on_demand(tmp_path, name, contents, kind):
    (tmp_path / name).write_text(contents, newline="")
    assert identify(tmp_path / name, name, as_text=True).kind == TEXT
