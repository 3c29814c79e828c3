"""What never appears in the package: ways to run code that came with data."""

import ast
import re
from collections.abc import Iterator

import pytest

from tests.files import FILES, ROOT

WORDS = re.compile(r"\w*pickl\w*|dill|joblib|marshal|shelve|trust_remote_code", re.IGNORECASE)
"""Modules, attributes and arguments that unpickle or run remote code."""
UNPICKLERS = ("torch", "numpy")
"""Libraries whose `load` can unpickle."""


def forbidden(source: str) -> list[str]:
    """Return the ways in which a file could run code that came with data."""
    tree = ast.parse(source)
    names = [word for node in ast.walk(tree) for word in words(node) if WORDS.fullmatch(word)]
    return [*names, *builtins(tree), *loads(tree)]


def words(node: ast.AST) -> list[str]:
    """Return the words of the name that a node mentions. A string may be a name, too."""
    match node:
        case (
            ast.Name(id=name)
            | ast.Attribute(attr=name)
            | ast.alias(name=name)
            | ast.ImportFrom(module=str(name))
            | ast.keyword(arg=str(name))
            | ast.Constant(value=str(name))
        ):
            return name.split(".")
    return []


def builtins(tree: ast.AST) -> Iterator[str]:
    """Yield the mentions of the built-in functions that run text."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in ("eval", "exec"):
            yield node.id


def loads(tree: ast.AST) -> Iterator[str]:
    """Yield the uses of an unpickler's `load`, except calls with `weights_only=True`."""
    modules, safe = set[str](), set[ast.AST]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {a.asname or a.name.split(".")[0] for a in node.names if _unpickles(a.name)}
        elif isinstance(node, ast.ImportFrom) and _unpickles(node.module or ""):
            modules |= {alias.asname or alias.name for alias in node.names}
            yield from (f"{node.module}.load" for a in node.names if a.name in ("load", "*"))
        elif isinstance(node, ast.Call):
            values = [k.value for k in node.keywords if k.arg == "weights_only"]
            if any(_is(value, True) for value in values):
                safe.add(node.func)
            elif values:
                yield "weights_only"
            if ast.unparse(node.func) == "getattr" and any(_is(arg, "load") for arg in node.args):
                yield ast.unparse(node)
        elif _is(node, "weights_only"):
            yield "weights_only"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr == "load" and node not in safe:
            name = ast.unparse(node)
            if name.split(".")[0] in {*modules, *UNPICKLERS}:
                yield name


def _unpickles(module: str) -> bool:
    return module.split(".")[0] in UNPICKLERS


def _is(node: ast.AST, value: object) -> bool:
    """Return whether a node is this constant."""
    return isinstance(node, ast.Constant) and node.value == value


@pytest.mark.parametrize("file", FILES)
def test_nothing_runs_code_that_came_with_data(file):
    assert forbidden((ROOT / file).read_text("utf-8")) == []


@pytest.mark.parametrize(
    ("source", "is_error"),
    [
        ("torch.load(path, weights_only=True)", False),
        ('"""No pickle is ever loaded."""', False),
        ("from safetensors.torch import load", False),
        ("from torch import Tensor\ncheckpoint.load(path)", False),
        ("import triton.language as tl\ntl.load(place)", False),
        ("model.eval()", False),
        ("torch.load(path)", True),
        ("torch.load(path, weights_only=False)", True),
        ("torch.load(path, weights_only=flag)", True),
        ("torch.load(path, **{'weights_only': False})", True),
        ("load = torch.load", True),
        ("import torch as t\nt.load(path)", True),
        ("import torch.serialization as s\ns.load(path)", True),
        ("from torch import serialization\nserialization.load(path)", True),
        ("torch.hub.load(repository, name)", True),
        ("from torch import load", True),
        ("from torch.serialization import load as read", True),
        ("from torch import *", True),
        ("getattr(torch, 'load')", True),
        ("from numpy import load", True),
        ("import numpy as np\nnp.load(path, None, True)", True),
        ("np.load(path, allow_pickle=True)", True),
        ("import pickle", True),
        ("from pickle import loads", True),
        ("def f():\n    import pickle as p", True),
        ("import_module('pickle')", True),
        ("__import__('pickle')", True),
        ("import joblib", True),
        ("from joblib import load", True),
        ("pandas.read_pickle(path)", True),
        ("torch.serialization.pickle.loads(data)", True),
        ("getattr(torch.serialization, 'pickle').loads(data)", True),
        ("load_dataset(name, trust_remote_code=True)", True),
        ("load_dataset(name, **{'trust_remote_code': True})", True),
        ("exec(text)", True),
        ("eval(text)", True),
    ],
)
def test_the_check_of_what_is_forbidden(source, is_error):
    assert bool(forbidden(source)) == is_error
