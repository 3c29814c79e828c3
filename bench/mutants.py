"""How many small changes to the code behind printed figures the tests notice.

    python bench/mutants.py [--minutes 60] [--seed 0] [--jobs 2] [MODULE ...]

cosmic-ray changes one operator, number or condition of a module at a time, in a copy of this
checkout. The changes are a random sample, the same for the same seed, and the modules take turns
until the time is over. A change is noticed if a test that mirrors the module fails, or else one of
its folder. The script prints each change that survives, and the score of each module. Some
survivors are harmless, such as `<` instead of `<=` where both are the same. A change that makes
the tests hang is counted by itself: it cannot go into a release unnoticed, but no test says so.
"""

import argparse
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from difflib import unified_diff
from itertools import chain, zip_longest
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

ROOT = Path(__file__).parents[1]
MODULES = (
    "train/step.py",
    "train/evaluate.py",
    "train/step_metrics.py",
    "model/loss.py",
    "moe/statistics.py",
    "moe/load.py",
    "cost/*.py",
)
RARE = ("Shift", "Bit", "Is", "Mod", "Pow", "Invert", "Variable")
"""Parts of the names of operators that hardly ever resemble a mistake that somebody makes."""
LONGEST = 300.0
"""Seconds after which the tests count as hanging."""

NOTICED, HUNG, SURVIVED = "noticed", "hung", "survived"

Mutation = tuple[str, str, int]
"""A module of the package, the name of an operator, and the number of its occurrence there."""


def main() -> None:
    """Parse the arguments, sample, and print the survivors and the scores."""
    parser = argparse.ArgumentParser(description="How many small changes the tests notice.")
    parser.add_argument("modules", nargs="*", default=MODULES, metavar="MODULE")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    modules = [
        path.relative_to(ROOT / "moebius").as_posix()
        for pattern in options.modules
        for path in sorted((ROOT / "moebius").glob(pattern))
        if path.name != "__init__.py"
    ]
    stop = time.monotonic() + 60 * options.minutes
    results: dict[str, Counter[str]] = defaultdict(Counter)
    with TemporaryDirectory() as folder, ThreadPoolExecutor(options.jobs) as threads:
        copies: SimpleQueue[Path] = SimpleQueue()
        for number in range(options.jobs):
            copies.put(_copied(Path(folder) / str(number)))

        @contextmanager
        def a_copy() -> Iterator[Path]:
            copy = copies.get()
            try:
                yield copy
            finally:
                copies.put(copy)

        def check(tests: str) -> None:
            with a_copy() as copy:
                outcome = _outcome(copy, [tests])
            if outcome == HUNG:
                sys.exit(f"{tests} takes longer than {LONGEST:.0f} s without any change")
            if outcome == NOTICED:
                sys.exit(f"{tests} fails without any change, so it cannot notice one")

        def change(mutation: Mutation) -> None:
            if time.monotonic() > stop:
                return
            with a_copy() as copy:
                outcome, difference = _tried(copy, mutation)
            results[mutation[0]][outcome] += 1
            if outcome != NOTICED:
                print(f"{outcome}\n{difference}", flush=True)

        checks = threads.map(check, sorted({str(_folder(module)) for module in modules}))
        changes = threads.map(change, _sample(modules, options.seed))
        list(chain(checks, changes))
    for module, counts in sorted(results.items()):
        print(f"{module:<24}{_score(counts)}")
    print(f"{'in all':<24}{_score(sum(results.values(), Counter()))}, seed {options.seed}")


def _score(counts: Counter[str]) -> str:
    """Return how many changes were noticed, in words."""
    score = f"{counts[NOTICED]:>4} of {counts.total()} noticed"
    return f"{score}, {counts[HUNG]} hung" if counts[HUNG] else score


def _copied(folder: Path) -> Path:
    """Return a folder with a copy of the checkout's files."""
    command = ["git", "ls-files", "-co", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(lambda name: (ROOT / name).is_file(), listed.stdout.splitlines()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


def _sample(modules: list[str], seed: int) -> Iterator[Mutation]:
    """Yield all mutations in random order, one of each module after the other."""
    generator = random.Random(seed)
    by_module = []
    for module in modules:
        mutations = list(_mutations(module))
        generator.shuffle(mutations)
        by_module.append(mutations)
    return filter(None, chain.from_iterable(zip_longest(*by_module)))


def _mutations(module: str) -> Iterator[Mutation]:
    """Yield every mutation of a module."""
    nodes = list(ast_nodes(get_ast((ROOT / "moebius" / module).read_text())))
    for name in sorted(operator_names()):
        if any(part in name for part in RARE):
            continue
        operator = get_operator(name)()
        count = sum(len(list(operator.mutation_positions(node))) for node in nodes)
        yield from ((module, name, occurrence) for occurrence in range(count))


def _tried(copy: Path, mutation: Mutation) -> tuple[str, str]:
    """Return what the tests made of a mutation, and the difference that it makes."""
    module, name, occurrence = mutation
    file = copy / "moebius" / module
    original = file.read_text()
    mutated = mutate_code(original, get_operator(name)(), occurrence)
    assert mutated not in (None, original), mutation
    file.write_text(mutated)
    try:
        outcome = _outcome(copy, _mirrored(copy, module))
        if outcome == SURVIVED:
            outcome = _outcome(copy, [str(_folder(module))])
    finally:
        file.write_text(original)
    lines = unified_diff(original.splitlines(), mutated.splitlines(), module, name, "", "", 0, "")
    return outcome, "\n".join(lines)


def _folder(module: str) -> Path:
    """Return the folder of a module's tests."""
    return Path("tests") / Path(module).parent


def _mirrored(copy: Path, module: str) -> list[str]:
    """Return the files of tests that mirror a module, relative to the copy."""
    files = copy.glob(f"{_folder(module)}/test_{Path(module).stem}*.py")
    return sorted(str(file.relative_to(copy)) for file in files)


def _outcome(copy: Path, tests: list[str]) -> str:
    """Return what the tests say about a copy of the checkout: SURVIVED if all of them pass."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", "-p", "no:cacheprovider"]
    path = os.pathsep.join(filter(None, [str(copy), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            [*command, *tests], cwd=copy, env=environment, capture_output=True, timeout=LONGEST
        )
    except subprocess.TimeoutExpired:
        return HUNG
    return NOTICED if done.returncode else SURVIVED


if __name__ == "__main__":
    main()
