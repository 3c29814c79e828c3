"""Make a fair field for comparing models: text of Python packages, split by whole packages.

    python bench/field.py FOLDER

FOLDER gets `train/` and `held_out/`, with the Python sources and the documentation of the packages
that this Python has. What pip installs together is in one of the two as a whole: files of one
project resemble each other, and a model that has seen the rest of a project gains on its other
files what it would not gain on new text. Copies of held-out packages within other packages are
left out of the training text, and so is each file that is the same as a held-out one.

Then train on FOLDER/train, and evaluate with `moebius evaluate RUN --source FOLDER/held_out`.
"""

import argparse
import hashlib
import os
import sysconfig
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path

PROSE = {".md", ".rst", ".txt"}
LEGAL = ("licen", "copying", "notice", "authors", "third_party", "third-party")
"""Parts of the names of files that are the same in many packages."""
HELD_OUT = 0.03
"""Share of the text that is held out, and the largest share that one held-out package has."""
FEWEST_BYTES, MOST_BYTES = 200, 2**20
"""Smaller files are mostly empty `__init__.py`; larger ones are mostly generated tables."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--packages", type=Path, default=Path(sysconfig.get_paths()["purelib"]))
    options = parser.parse_args()
    for name, (num_projects, num_files, num_bytes) in make_field(
        options.folder, options.packages
    ).items():
        print(f"{name}: {num_projects} projects, {num_files:,} files, {num_bytes / 1e6:,.0f} MB")


def make_field(folder: Path, packages: Path) -> dict[str, tuple[int, int, int]]:
    """Copy the text, and return for `held_out` and `train` the projects, files and bytes."""
    texts = texts_by_project(packages)
    held_out = choose_held_out({name: _num_bytes(paths) for name, paths in texts.items()})
    parts = {"held_out": held_out, "train": [name for name in texts if name not in held_out]}
    folders = {path.relative_to(packages).parts[0] for name in held_out for path in texts[name]}
    seen: set[bytes] = set()
    sizes = {}
    for part, names in parts.items():
        num_files = num_bytes = 0
        for path in (path for name in names for path in texts[name]):
            if part == "train" and not folders.isdisjoint(path.relative_to(packages).parts):
                continue
            content = path.read_bytes()
            hash_ = hashlib.sha256(content).digest()
            if hash_ in seen:
                continue
            seen.add(hash_)
            copy = folder / part / kind_of(path) / path.relative_to(packages)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.with_name(copy.name + ".txt" * (not copy.suffix)).write_bytes(content)
            num_files, num_bytes = num_files + 1, num_bytes + len(content)
        sizes[part] = (len(names), num_files, num_bytes)
    return sizes


def texts_by_project(packages: Path) -> dict[str, list[Path]]:
    """Return each project's files with text. It is named after one of its folders."""
    projects, texts = projects_of(packages), dict[str, list[Path]]()
    for entry in sorted(packages.iterdir()):
        if _is_used(entry):
            texts.setdefault(projects.get(entry.name, entry.name), []).extend(_texts_in(entry))
    return texts


def projects_of(packages: Path) -> dict[str, str]:
    """Return the project of each folder that a distribution installs.

    `PIL` and `pillow-12.0.dist-info` are one project, and so are all distributions that put
    something into the same folder, as those of a namespace do.
    """
    projects: dict[str, str] = {}
    for distribution in distributions(path=[str(packages)]):
        tops = {file.parts[0] for file in distribution.files or ()}
        folders = {top for top in tops if _is_used(packages / top)}
        same = folders | {projects[folder] for folder in folders & projects.keys()}
        same |= {folder for folder, project in projects.items() if project in same}
        if same:
            name = min(same, key=lambda folder: (folder.endswith(".dist-info"), folder))
            projects |= dict.fromkeys(same, name)
    return projects


def choose_held_out(num_bytes: dict[str, int]) -> set[str]:
    """Return the projects to hold out, in the order of a hash of their names, until they suffice.

    num_bytes: the bytes of text of each project.
    """
    whole = sum(num_bytes.values())
    held_out: set[str] = set()
    for name in sorted(num_bytes, key=lambda name: hashlib.sha256(name.lower().encode()).digest()):
        if sum(num_bytes[each] for each in held_out) >= HELD_OUT * whole:
            break
        if num_bytes[name] <= HELD_OUT * whole:
            held_out.add(name)
    return held_out


def kind_of(path: Path) -> str:
    """Return `code`, `prose` or, for a file that is not used, nothing."""
    if path.suffix == ".py":
        return "code"
    is_legal = any(part in path.name.lower() for part in LEGAL)
    is_prose = path.suffix in PROSE or path.name == "METADATA"
    return "prose" if is_prose and not is_legal else ""


def _is_used(entry: Path) -> bool:
    """Return whether it is a folder of a package, unlike `..`, `__pycache__` and files."""
    return entry.is_dir() and not entry.name.startswith((".", "_"))


def _texts_in(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        folders.sort()
        for path in (Path(parent, file) for file in sorted(files)):
            is_text = kind_of(path) and not path.is_symlink()
            if is_text and FEWEST_BYTES <= path.stat().st_size <= MOST_BYTES:
                yield path


def _num_bytes(paths: list[Path]) -> int:
    return sum(path.stat().st_size for path in paths)


if __name__ == "__main__":
    main()
