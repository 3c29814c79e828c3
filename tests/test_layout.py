"""The layout of the package: who may import whom, how large things get, what never appears."""

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import moebius

ROOT = Path(moebius.__file__).parent
REPOSITORY = ROOT.parent
FILES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py"))
SCRIPTS = sorted(
    path.relative_to(REPOSITORY).as_posix()
    for folder in ("tests", "bench")
    for path in (REPOSITORY / folder).rglob("*.py")
)
LONGEST_FILE = 400  # lines
LONGEST_FUNCTION = 60  # lines, from `def` to the last one
LONGEST_LINE = 99  # characters: a line ends before column 100
LARGEST_FOLDER = 1 / 5  # of the package's lines

# A file imports only from rows above its own, or from its own row.
ROWS = (
    "errors",
    "config",
    "cost",
    "hardware",
    "kernels",
    "moe",
    "model",
    "data",
    "parallel",
    "observe",
    "train",
    "infer",
    "profile",
    "ablate",
    "plan",
    "doctor",
    "report",
    "cli",
)
ANYWHERE = {"__init__.py", "__main__.py"}  # of the package itself
WITHOUT_TORCH = [
    file for file in FILES if file == "errors.py" or file.split("/")[0] in ("config", "cost")
]
FORBIDDEN_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "shelve", "marshal"}
FORBIDDEN_NAMES = {"utils", "helpers", "manager", "base", "common", "misc"}


def row(name: str) -> int | None:
    """Return the row of a top-level module or folder; None for one the design does not know."""
    return ROWS.index(name) if name in ROWS else None


def imported(file: str, source: str) -> Iterator[str]:
    """Yield every module a file imports, at the top or in a function, by its full dotted name."""
    package = ["moebius", *Path(file).parent.parts]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*parents, *([node.module] if node.module else [])])
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def layout_errors(file: str, source: str) -> list[str]:
    """Return the imports of a file that the order of the rows does not allow."""
    if file in ANYWHERE:
        return []
    own = Path(file).parts[0].removesuffix(".py")
    own_row = row(own)
    if own_row is None:
        return [f"{file}: {own} is in no row"]
    errors = []
    for name in imported(file, source):
        parts = name.split(".")
        if parts[0] != "moebius":
            continue
        if parts[-1].startswith("__"):
            continue  # moebius.__version__
        their_row = row(parts[1]) if len(parts) > 1 else None
        if their_row is None or their_row > own_row:
            errors.append(f"{file} imports {name}")
    return errors


def long_functions(source: str) -> list[str]:
    """Return the functions that are too long. Triton kernels, which cannot be split, may be."""
    return [
        f"{node.name}: {length} lines"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef)
        and (length := (node.end_lineno or 0) - node.lineno + 1) > LONGEST_FUNCTION
        and not any("jit" in ast.unparse(decorator) for decorator in node.decorator_list)
    ]


def docstrings(source: str) -> Iterator[str]:
    """Yield every docstring: of modules, classes, functions, and those below a field."""
    for node in ast.walk(ast.parse(source)):
        body = getattr(node, "body", None)  # an expression for a lambda or a conditional
        for statement in body if isinstance(body, list) else ():
            value = statement.value if isinstance(statement, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield value.value


def fragments(source: str) -> list[str]:
    """Return the docstrings that open with "Of"."""
    return [text[:60] for text in docstrings(source) if text.strip().startswith(("Of ", "Of\n"))]


def forbidden(source: str) -> list[str]:
    """Return the ways in which a file could run code that came with data."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            names += [name for name in modules if name.split(".")[0] in FORBIDDEN_MODULES]
        elif isinstance(node, ast.Attribute | ast.Name):
            name = node.attr if isinstance(node, ast.Attribute) else node.id
            names += [name] if name in FORBIDDEN_MODULES else []
        elif isinstance(node, ast.keyword):
            is_true = isinstance(node.value, ast.Constant) and node.value.value is True
            names += ["weights_only"] if node.arg == "weights_only" and not is_true else []
            names += [node.arg] if node.arg in ("trust_remote_code", "allow_pickle") else []
        elif isinstance(node, ast.Constant):
            switches = ("trust_remote_code", "weights_only", "allow_pickle")
            names += [str(node.value)] if node.value in switches else []
    return names


@pytest.mark.parametrize("file", FILES)
def test_a_file_imports_from_rows_above_its_own(file):
    assert layout_errors(file, (ROOT / file).read_text("utf-8")) == []


@pytest.mark.parametrize(
    ("file", "source", "is_error"),
    [
        ("model/rope.py", "from moebius.config import ModelConfig", False),
        ("model/rope.py", "import moebius.model.attention", False),
        ("model/rope.py", "from .attention import Attention", False),
        ("model/rope.py", "from . import attention", False),
        ("model/rope.py", "from ..config import ModelConfig", False),
        ("model/rope.py", "from moebius.moe.layer import MoE", False),
        ("model/rope.py", "import torch", False),
        ("hardware/devices.py", "from moebius.cost.device import Device", False),
        ("__init__.py", "from moebius.cli import main", False),
        ("cli/train.py", "from moebius.infer.generate import generate", False),
        ("model/rope.py", "from moebius.train.loop import train", True),
        ("model/rope.py", "from moebius.parallel import layout", True),
        ("model/rope.py", "from moebius import train", True),
        ("model/rope.py", "import moebius", True),
        ("model/rope.py", "import moebius.train.loop as loop", True),
        ("model/rope.py", "from ..train import loop", True),
        ("model/rope.py", "def f():\n    from moebius.observe import alarms", True),
        ("moe/layer.py", "from moebius.model import loss", True),
        ("cost/layouts.py", "from moebius.hardware.devices import DEVICES", True),
        ("data/__init__.py", "from moebius.parallel import process", True),
        ("kernels/experts.py", "from moebius.moe import experts", True),
        ("config/fields.py", "from moebius.cost import counts", True),
        ("train/loop.py", "from moebius.profile.measure import Steps", True),
        ("plan/recommend.py", "from moebius.doctor import examine", True),
        ("utils.py", "", True),
        ("model/rope.py", "from moebius.utils import anything", True),
    ],
)
def test_the_check_of_imports(file, source, is_error):
    assert bool(layout_errors(file, source)) == is_error


def test_no_file_imports_itself_through_others():
    imports = {
        file: {
            target
            for name in imported(file, (ROOT / file).read_text("utf-8"))
            if (target := _file_of(name)) and target != file
        }
        for file in FILES
    }
    assert circles(imports) == []


def _file_of(name: str) -> str | None:
    """Return the file that an import of this dotted name reads, if it is one of the package."""
    parts = name.split(".")
    if parts[0] != "moebius":
        return None
    for end in (len(parts), len(parts) - 1):  # a module, or something in one
        path = "/".join(parts[1:end])
        for file in (f"{path}.py", f"{path}/__init__.py"):
            if file in FILES:
                return file
    return None


def circles(imports: dict[str, set[str]]) -> list[set[str]]:
    """Return the groups of files that reach each other by imports."""
    reached = {file: set(targets) for file, targets in imports.items()}
    changed = True
    while changed:
        changed = False
        for targets in reached.values():
            further = set().union(*(reached[target] for target in targets)) - targets
            targets |= further
            changed |= bool(further)
    groups = {
        frozenset(other for other in targets if file in reached[other])
        for file, targets in reached.items()
        if file in targets
    }
    return sorted(map(set, groups), key=sorted)


def test_the_check_of_circles():
    assert circles({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [{"a", "b", "c"}]


@pytest.mark.parametrize("file", FILES)
def test_no_file_is_too_long(file):
    assert len((ROOT / file).read_text("utf-8").splitlines()) <= LONGEST_FILE


@pytest.mark.parametrize("file", FILES)
def test_no_function_is_too_long(file):
    assert long_functions((ROOT / file).read_text("utf-8")) == []


def test_the_check_of_functions():
    body = "    x = 1\n" * LONGEST_FUNCTION
    assert long_functions(f"def f():\n{body}") == [f"f: {LONGEST_FUNCTION + 1} lines"]
    assert long_functions(f"class C:\n  def f():\n{body}") == [f"f: {LONGEST_FUNCTION + 1} lines"]
    assert long_functions("def f():\n" + "    x = 1\n" * (LONGEST_FUNCTION - 1)) == []
    assert long_functions(f"@triton.jit\ndef f():\n{body}") == []


def test_no_folder_is_a_large_part_of_the_package():
    lines = Counter[str]()
    for file in FILES:
        lines[file.split("/")[0]] += len((ROOT / file).read_text("utf-8").splitlines())
    total = sum(lines.values())
    assert {folder: n for folder, n in lines.items() if n > LARGEST_FOLDER * total} == {}


def test_every_module_is_named_after_its_idea():
    names = {part for file in FILES for part in Path(file).with_suffix("").parts}
    assert names & FORBIDDEN_NAMES == set()


@pytest.mark.parametrize("file", [f"moebius/{file}" for file in FILES] + SCRIPTS)
def test_no_line_is_too_long(file):
    lines = (REPOSITORY / file).read_text("utf-8").splitlines()
    assert [n for n, line in enumerate(lines, start=1) if len(line) > LONGEST_LINE] == []


@pytest.mark.parametrize("file", [f"moebius/{file}" for file in FILES] + SCRIPTS)
def test_no_docstring_opens_with_of(file):
    assert fragments((REPOSITORY / file).read_text("utf-8")) == []


def test_the_check_of_docstrings():
    assert fragments('"""Of a run, what one device has."""') == ["Of a run, what one device has."]
    assert fragments('def f():\n    """Of both."""') == ["Of both."]
    assert fragments('class C:\n    x: int\n    """Of a step."""') == ["Of a step."]
    assert fragments('"""Offers. Of course."""\nx = "Of no docstring"') == []


@pytest.mark.parametrize("file", FILES)
def test_every_public_thing_says_what_it_is(file):
    """Modules, and public classes, functions and methods, have a docstring."""
    tree = ast.parse((ROOT / file).read_text("utf-8"))
    nodes = [tree, *_public(tree)]
    assert [getattr(node, "name", file) for node in nodes if not ast.get_docstring(node)] == []


def _public(node: ast.AST) -> Iterator[ast.ClassDef | ast.FunctionDef]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef) and not child.name.startswith("_"):
            if not _is_exempt(child):
                yield child
            if isinstance(child, ast.ClassDef):
                yield from _public(child)


def _is_exempt(node: ast.ClassDef | ast.FunctionDef) -> bool:
    """Return whether the name says it all: torch's forward and backward, and what is fake."""
    return node.name in ("forward", "backward", "render")


def test_tests_mirror_the_package():
    """A test file stands where its module stands, so that it is found."""
    modules = {Path(file).with_suffix("").as_posix() for file in FILES}
    # or where the thing of the tests' own stands that it tests
    modules |= {
        Path(file).relative_to("tests").with_suffix("").as_posix()
        for file in SCRIPTS
        if file.startswith("tests/")
    }
    tests = [
        Path(file).relative_to("tests")
        for file in SCRIPTS
        if file.startswith("tests/") and Path(file).name.startswith("test_")
    ]
    strangers = [
        test.as_posix()
        for test in tests
        if len(test.parts) > 1
        and test.parts[0] != "bench"
        and not _mirrors(test.with_name(test.stem.removeprefix("test_")).as_posix(), modules)
    ]
    assert strangers == []


def _mirrors(name: str, modules: set[str]) -> bool:
    """Return whether the name is a module's, or that of one with a suffix: router_choices."""
    return any(name == module or name.startswith(f"{module}_") for module in modules)


@pytest.mark.parametrize("file", WITHOUT_TORCH)
def test_a_configuration_and_its_cost_need_no_torch(file):
    names = {name.split(".")[0] for name in imported(file, (ROOT / file).read_text("utf-8"))}
    assert "torch" not in names


def test_nothing_that_a_configuration_imports_brings_torch_in():
    dotted = (file.removesuffix(".py").replace("/", ".") for file in WITHOUT_TORCH)
    modules = ", ".join(f"moebius.{name.removesuffix('.__init__')}" for name in dotted)
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False)
    assert done.returncode == 0


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
