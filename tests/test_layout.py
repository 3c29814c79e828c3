"""The layout of the package: who may import whom, and how large things get."""

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.files import FILES, REPOSITORY, ROOT, SCRIPTS, SOURCES

LONGEST_FILE = 400  # lines
LONGEST_FUNCTION = 60  # lines, from `def` to the last one
LARGEST_FOLDER = 1 / 5  # of the package's lines
KERNELS = {"triton.jit", "gluon.jit"}  # decorators

PRODUCTS = ("profile", "ablate", "plan", "doctor", "report", "watch")

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
    *PRODUCTS,
    "cli",
)
ANYWHERE = {"__init__.py", "__main__.py"}  # of the package itself
REGISTRIES = {"cli/registry.py", "model/attention.py", "moe/backends.py"}
"""Files that import what their own table names."""
IMPORTERS = {"__import__", "import_module", "exec_module", "resolve_name", "run_module"}
"""Functions that import."""
WITHOUT_TORCH = [
    file for file in FILES if file == "errors.py" or file.split("/")[0] in ("config", "cost")
]
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


def named(source: str) -> Iterator[str]:
    """Yield every string that is the dotted name of a module of the package, or of its content."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            name = node.value.replace(":", ".")
            if _file_of(name):
                yield name


def computed_imports(file: str, source: str) -> list[str]:
    """Return the uses of functions that import where no string says which module.

    A registry may import what a variable names: its table consists of such strings.
    """
    nodes = list(ast.walk(ast.parse(source)))
    legible = {
        node.func
        for node in nodes
        if isinstance(node, ast.Call) and node.args and _is_legible(file, node.args[0])
    }
    errors = []
    for node in nodes:
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.Constant(value=str(name)):
                is_error = node not in legible
            case ast.alias(name=name, asname=str()):
                is_error = True  # under another name, it would not be recognized
            case _:
                continue
        if is_error and name in IMPORTERS:
            errors.append(f"{file} uses {name}")
    return errors


def _is_legible(file: str, argument: ast.expr) -> bool:
    """Return whether the argument of a function that imports says which module."""
    if isinstance(argument, ast.Constant):
        return not str(argument.value).startswith(".")  # relative to what?
    return isinstance(argument, ast.Name) and file in REGISTRIES


def layout_errors(file: str, source: str) -> list[str]:
    """Return the imports of a file that the order of the rows does not allow."""
    if file in ANYWHERE:
        return []
    own = Path(file).parts[0].removesuffix(".py")
    own_row = row(own)
    if own_row is None:
        return [f"{file}: {own} is in no row"]
    errors = computed_imports(file, source)
    for name in (*imported(file, source), *named(source)):
        parts = name.split(".")
        if parts[0] != "moebius" or name == "moebius.__version__":
            continue
        their_row = row(parts[1]) if len(parts) > 1 else None
        if their_row is None or their_row > own_row:
            errors.append(f"{file} imports {name}")
    return errors


def foreign_products(file: str, source: str) -> set[str]:
    """Return the products that a module of the command line imports and is not named after."""
    names = (*imported(file, source), *named(source))
    theirs = {name.split(".")[1] for name in names if name.startswith("moebius.")}
    return theirs & set(PRODUCTS) - {Path(file).stem}


def long_functions(source: str) -> list[str]:
    """Return the functions that are too long. Triton kernels, which cannot be split, may be."""
    return [
        f"{node.name}: {length} lines"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or 0) - node.lineno + 1) > LONGEST_FUNCTION
        and not any(_is_kernel(decorator) for decorator in node.decorator_list)
    ]


def _is_kernel(decorator: ast.expr) -> bool:
    """Return whether a decorator makes a kernel; it may have arguments."""
    function = decorator.func if isinstance(decorator, ast.Call) else decorator
    return ast.unparse(function) in KERNELS


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
        ("cli/main.py", "from moebius import __version__", False),
        ("model/rope.py", "import_module('torch')", False),
        ("model/rope.py", "import_module('moebius.config.model')", False),
        ("model/rope.py", "torch.library.custom_op('moebius::train', f)", False),
        ("moe/backends.py", "import_module(module)", False),
        ("moe/backends.py", "PLACES = {'loop': 'moebius.moe.experts'}", False),
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
        ("model/rope.py", "from moebius.train import __doc__", True),
        ("model/rope.py", "from moebius.train.loop import __name__", True),
        ("model/rope.py", "import_module('moebius.train.loop')", True),
        ("model/rope.py", "importlib.import_module('moebius.train')", True),
        ("model/rope.py", "__import__('moebius.train.loop')", True),
        ("model/rope.py", "import_module(f'moebius.{name}')", True),
        ("model/rope.py", "import_module('.loop', 'moebius.train')", True),
        ("model/rope.py", "import_module('..train.loop', __package__)", True),
        ("model/rope.py", "import_module('moebius.' + 'train')", True),
        ("model/rope.py", "import_module(module)", True),
        ("model/rope.py", "map(import_module, modules)", True),
        ("model/rope.py", "getattr(importlib, 'import_module')", True),
        ("model/rope.py", "from importlib import import_module as load", True),
        ("model/rope.py", "runpy.run_module('moebius.train.loop')", True),
        ("model/rope.py", "pkgutil.resolve_name('moebius.train.loop:train')", True),
        ("model/rope.py", "sys.modules['moebius.train.loop']", True),
        ("moe/backends.py", "PLACES = {'loop': ('moebius.model.attention', 'x')}", True),
        ("moe/backends.py", "import_module(f'moebius.{name}')", True),
        ("utils.py", "", True),
        ("model/rope.py", "from moebius.utils import anything", True),
    ],
)
def test_the_check_of_imports(file, source, is_error):
    assert bool(layout_errors(file, source)) == is_error


def test_no_file_imports_itself_through_others():
    """What a registry names does not count: it is imported later, which breaks a circle."""
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


@pytest.mark.parametrize("file", SOURCES)
def test_no_file_is_too_long(file):
    assert len((REPOSITORY / file).read_text("utf-8").splitlines()) <= LONGEST_FILE


@pytest.mark.parametrize("file", SOURCES)
def test_no_function_is_too_long(file):
    assert long_functions((REPOSITORY / file).read_text("utf-8")) == []


@pytest.mark.parametrize(
    ("head", "num_lines", "is_error"),
    [
        ("def f():", LONGEST_FUNCTION, False),
        ("def f():", LONGEST_FUNCTION + 1, True),
        ("async def f():", LONGEST_FUNCTION + 1, True),
        ("class C:\n  def f():", LONGEST_FUNCTION + 1, True),
        ("@triton.jit\ndef f():", LONGEST_FUNCTION + 1, False),
        ("@triton.jit(debug=True)\ndef f():", LONGEST_FUNCTION + 1, False),
        ("@gluon.jit\ndef f():", LONGEST_FUNCTION + 1, False),
        ("@jitter\ndef f():", LONGEST_FUNCTION + 1, True),
        ("@torch.jit.script\ndef f():", LONGEST_FUNCTION + 1, True),
        ("@cache(triton.jit)\ndef f():", LONGEST_FUNCTION + 1, True),
    ],
)
def test_the_check_of_functions(head, num_lines, is_error):
    errors = long_functions(head + "\n    x = 1" * (num_lines - 1))
    assert errors == ([f"f: {num_lines} lines"] if is_error else [])


@pytest.mark.parametrize("file", [file for file in FILES if file.startswith("cli/")])
def test_no_folder_holds_two_products(file):
    """A product is a folder, and the command of the same name is the only way into it.

    A second product in a folder would need a second command that enters it; a product spread over
    two folders would need a command that enters both. A product may use an earlier one: `ablate`
    counts steps like `profile`.
    """
    assert foreign_products(file, (ROOT / file).read_text("utf-8")) == set()


def test_every_product_has_a_command():
    folders = {Path(file).parts[0] for file in FILES if "/" in file}
    for product in folders & set(PRODUCTS):
        names = imported(f"cli/{product}.py", (ROOT / f"cli/{product}.py").read_text("utf-8"))
        assert any(name.startswith(f"moebius.{product}.") for name in names), product


@pytest.mark.parametrize(
    ("file", "source", "products"),
    [
        ("cli/plan.py", "def f():\n    from moebius.plan.recommend import plan", set()),
        ("cli/resume.py", "from moebius.train.loop import train", set()),
        ("cli/compare.py", "from moebius.ablate.run import ablate", {"ablate"}),
        ("cli/plan.py", "def f():\n    from ..doctor import examine", {"doctor"}),
        ("cli/parse.py", "import moebius.profile.page", {"profile"}),
        ("cli/registry.py", "MODULES = ('moebius.plan.recommend',)", {"plan"}),
    ],
)
def test_the_check_of_products(file, source, products):
    assert foreign_products(file, source) == products


def test_no_folder_is_a_large_part_of_the_package():
    lines = Counter[str]()
    for file in FILES:
        lines[file.split("/")[0]] += len((ROOT / file).read_text("utf-8").splitlines())
    total = sum(lines.values())
    assert {folder: n for folder, n in lines.items() if n > LARGEST_FOLDER * total} == {}


def test_every_module_is_named_after_its_idea():
    names = {part for file in FILES for part in Path(file).with_suffix("").parts}
    assert names & FORBIDDEN_NAMES == set()


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
