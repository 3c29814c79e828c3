"""The language of the repository: what docstrings say, and how long lines are."""

import ast
import re
from collections.abc import Iterator

import pytest

from tests.files import FILES, PAGES, REPOSITORY, ROOT, SOURCES

LONGEST_LINE = 99  # characters: a line ends before column 100
VERBATIM = "docs/founding.md"

Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def docstrings(source: str) -> Iterator[str]:
    """Yield every docstring: of modules, classes, functions, and those below a field."""
    for node in ast.walk(ast.parse(source)):
        body = getattr(node, "body", None)  # an expression for a lambda or a conditional
        for statement in body if isinstance(body, list) else ():
            value = statement.value if isinstance(statement, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield value.value


def fragments(source: str) -> list[str]:
    """Return the docstrings that open with "Of", however it is written."""
    return [text[:60] for text in docstrings(source) if re.match(r"\s*of\b", text, re.IGNORECASE)]


def undocumented(source: str) -> list[str]:
    """Return the module, and the public classes, functions and methods, without a docstring."""
    tree = ast.parse(source)
    nodes = [tree, *_public(tree)]
    return [getattr(node, "name", "module") for node in nodes if not ast.get_docstring(node)]


def _public(node: ast.AST) -> Iterator[Definition]:
    """Yield the public definitions outside functions."""
    for child in ast.iter_child_nodes(node):
        is_definition = isinstance(child, Definition)
        if is_definition and child.name.startswith("_"):
            continue
        if is_definition and not _is_exempt(child):
            yield child
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _public(child)


def _is_exempt(node: Definition) -> bool:
    """Return whether the name says it all: torch's forward and backward, and what is fake."""
    return node.name in ("forward", "backward", "render")


def long_lines(page: str) -> list[int]:
    """Return the numbers of a page's long lines of prose.

    Code and tables cannot be wrapped, and neither can a word on its own, such as a link.
    """
    numbers, is_code = [], False
    for number, line in enumerate(page.splitlines(), start=1):
        text = line.strip()
        if text.startswith("```"):
            is_code = not is_code
        is_table = text.startswith("|") and text.endswith("|")
        can_break = " " in text.lstrip("-*>0123456789. ")
        if len(line) > LONGEST_LINE and can_break and not is_code and not is_table:
            numbers.append(number)
    return numbers


@pytest.mark.parametrize("file", SOURCES)
def test_no_line_is_too_long(file):
    lines = (REPOSITORY / file).read_text("utf-8").splitlines()
    assert [n for n, line in enumerate(lines, start=1) if len(line) > LONGEST_LINE] == []


@pytest.mark.parametrize("page", [page for page in PAGES if page != VERBATIM])
def test_no_line_of_a_page_is_too_long(page):
    assert long_lines((REPOSITORY / page).read_text("utf-8")) == []


LONG = "word " * 20


@pytest.mark.parametrize(
    ("page", "numbers"),
    [
        ("short\n", []),
        (f"{LONG[:99]}\n", []),
        (f"```\n{LONG}\n```\n", []),
        (f"- item\n\n  ```\n  {LONG}\n  ```\n", []),
        (f"| {LONG} |\n", []),
        (f"- [link](https://{'x' * 100})\n", []),
        (f"{LONG}\n", [1]),
        (f"short\n\n- {LONG}\n", [3]),
        (f"1. {LONG}\n", [1]),
        (f"```\ncode\n```\n{LONG}\n", [4]),
        (f"| {LONG}\n", [1]),
        (f"see [link](https://{'x' * 100})\n", [1]),
    ],
)
def test_the_check_of_pages(page, numbers):
    assert long_lines(page) == numbers


@pytest.mark.parametrize("file", SOURCES)
def test_no_docstring_opens_with_of(file):
    assert fragments((REPOSITORY / file).read_text("utf-8")) == []


@pytest.mark.parametrize(
    ("source", "texts"),
    [
        ('"""Of a run, what one device has."""', ["Of a run, what one device has."]),
        ('def f():\n    """Of both."""', ["Of both."]),
        ('async def f():\n    """Of both."""', ["Of both."]),
        ('class C:\n    x: int\n    """Of a step."""', ["Of a step."]),
        ('"""of a step"""', ["of a step"]),
        ('"""OF A STEP"""', ["OF A STEP"]),
        ('"""Of: a step"""', ["Of: a step"]),
        ('"""Of\ta step"""', ["Of\ta step"]),
        ('"""\n  Of\n  a step."""', ["\n  Of\n  a step."]),
        ('"""Offers. Of course."""\nx = "Of no docstring"', []),
    ],
)
def test_the_check_of_docstrings(source, texts):
    assert fragments(source) == texts


@pytest.mark.parametrize("file", FILES)
def test_every_public_thing_says_what_it_is(file):
    """Modules, and public classes, functions and methods, have a docstring."""
    assert undocumented((ROOT / file).read_text("utf-8")) == []


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ('def f():\n    """Return nothing."""', []),
        ("def _f(): ...", []),
        ("class _C:\n    def f(self): ...", []),
        ("def _f():\n    def g(): ...", []),
        ("class _C(Function):\n    def forward(self): ...", []),
        ("def f(): ...", ["f"]),
        ("async def f(): ...", ["f"]),
        ('class C:\n    """A class."""\n    def f(self): ...', ["f"]),
        ('class C:\n    """A class."""\n    async def f(self): ...', ["f"]),
        ("if True:\n    def f(): ...", ["f"]),
    ],
)
def test_the_check_of_public_things(body, names):
    assert undocumented(body) == ["module", *names]
    assert undocumented(f'"""A module."""\n{body}') == names
