"""The layout of the package: who may import whom, how long a file may be, and what never appears."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import moebius

ROOT = Path(moebius.__file__).parent
FILES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py"))
LONGEST = 400

# A file imports from rows above its own, or from its own row.
ROWS: list[set[str]] = [
    {"errors"},
    {"fields"},
    {"rules", "hardware"},
    {"config"},
    {"presets", "settings", "cost", "memory"},
    {"data"},
    {"kernels"},
    {"model"},
    {"parallel"},
    {"observe"},
    {"train"},
    {"profile"},
    {"infer"},
    {"cli"},
]
ANYWHERE = {"__init__.py", "__main__.py"}  # of the package itself
WITHOUT_TORCH = [f"{name}.py" for row in ROWS[:5] for name in sorted(row)]
FORBIDDEN_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "shelve", "marshal"}


def row(name: str) -> int | None:
    """The row of a top-level module or folder of the package; None for one the design does not know."""
    return next((number for number, names in enumerate(ROWS) if name in names), None)


def imported(file: str, source: str) -> Iterator[str]:
    """Every module a file imports, at the top or in a function, as a full dotted name."""
    package = ["moebius", *Path(file).parent.parts]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*parents, *([node.module] if node.module else [])])
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def layout_errors(file: str, source: str) -> list[str]:
    if file in ANYWHERE:
        return []
    own = Path(file).parts[0].removesuffix(".py")
    if row(own) is None:
        return [f"{file}: {own} is in no row"]
    found = []
    for name in imported(file, source):
        parts = name.split(".")
        if parts[0] != "moebius":
            continue
        theirs = row(parts[1]) if len(parts) > 1 else None
        if theirs is None or theirs > row(own):  # pyright: ignore[reportOperatorIssue]
            found.append(f"{file} imports {name}")
    return found


def forbidden(source: str) -> list[str]:
    """Ways to run code that came with data."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            found += [name for name in names if name.split(".")[0] in FORBIDDEN_MODULES]
        elif isinstance(node, ast.Attribute | ast.Name):
            name = node.attr if isinstance(node, ast.Attribute) else node.id
            found += [name] if name in FORBIDDEN_MODULES else []
        elif isinstance(node, ast.keyword):
            is_true = isinstance(node.value, ast.Constant) and node.value.value is True
            found += ["weights_only"] if node.arg == "weights_only" and not is_true else []
            found += [node.arg] if node.arg in ("trust_remote_code", "allow_pickle") else []
        elif isinstance(node, ast.Constant) and node.value in ("trust_remote_code", "weights_only", "allow_pickle"):
            found.append(str(node.value))
    return found


@pytest.mark.parametrize("file", FILES)
def test_a_file_imports_from_rows_above_its_own(file):
    assert layout_errors(file, (ROOT / file).read_text("utf-8")) == []


@pytest.mark.parametrize(
    ("file", "source", "is_error"),
    [
        ("model/router.py", "from moebius.config import ModelConfig", False),
        ("model/router.py", "import moebius.model.mlp", False),
        ("model/router.py", "from .mlp import MLP", False),
        ("model/router.py", "from . import mlp", False),
        ("model/router.py", "from ..config import ModelConfig", False),
        ("model/router.py", "import torch", False),
        ("presets.py", "from moebius.cost import flops", False),
        ("__init__.py", "from moebius.cli import main", False),
        ("cli.py", "from moebius.infer.generate import generate", False),
        ("model/router.py", "from moebius.train.loop import train", True),
        ("model/router.py", "from moebius.parallel import layout", True),
        ("model/router.py", "from moebius import train", True),
        ("model/router.py", "import moebius", True),
        ("model/router.py", "import moebius.train.loop as loop", True),
        ("model/router.py", "from ..train import loop", True),
        ("model/router.py", "def f():\n    from moebius.observe import balance", True),
        ("data/__init__.py", "from moebius.model import loss", True),
        ("kernels/experts.py", "from moebius.model import experts", True),
        ("fields.py", "from moebius.config import Config", True),
        ("utils.py", "", True),
        ("model/router.py", "from moebius.utils import anything", True),
    ],
)
def test_the_check_of_imports(file, source, is_error):
    assert bool(layout_errors(file, source)) == is_error


@pytest.mark.parametrize("file", FILES)
def test_no_file_is_too_long(file):
    assert len((ROOT / file).read_text("utf-8").splitlines()) <= LONGEST


@pytest.mark.parametrize("file", WITHOUT_TORCH)
def test_a_configuration_needs_no_torch(file):
    names = {name.split(".")[0] for name in imported(file, (ROOT / file).read_text("utf-8"))}
    assert "torch" not in names


def test_nothing_that_a_configuration_imports_brings_torch_in():
    modules = ", ".join(f"moebius.{file.removesuffix('.py')}" for file in WITHOUT_TORCH)
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT.parent, check=False).returncode == 0


@pytest.mark.parametrize("file", FILES)
def test_nothing_runs_code_that_came_with_data(file):
    assert forbidden((ROOT / file).read_text("utf-8")) == []


@pytest.mark.parametrize(
    ("source", "is_error"),
    [
        ("torch.load(path, weights_only=True)", False),
        ('"""No pickle is ever loaded."""', False),
        ("torch.load(path, weights_only=False)", True),
        ("torch.load(path, weights_only=flag)", True),
        ("import pickle", True),
        ("from pickle import loads", True),
        ("def f():\n    import pickle as p", True),
        ("torch.serialization.pickle.loads(data)", True),
        ("load_dataset(name, trust_remote_code=True)", True),
        ("load_dataset(name, **{'trust_remote_code': True})", True),
        ("np.load(path, allow_pickle=True)", True),
    ],
)
def test_the_check_of_what_is_forbidden(source, is_error):
    assert bool(forbidden(source)) == is_error


def test_a_torch_load_says_that_it_reads_weights_only():
    for file in FILES:
        for node in ast.walk(ast.parse((ROOT / file).read_text("utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert any(keyword.arg == "weights_only" for keyword in node.keywords), file
