"""A child process runs this package's code, and nothing from the working directory."""

import os
import subprocess
from pathlib import Path

import pytest

import moebius
from moebius.data.child import python_command

NAMES = ("queue", "json", "types", "random", "token", "typing", "dataclasses", "numpy", "torch")
"""Modules that a user may have a file of the same name as."""


@pytest.fixture
def decoys(tmp_path, monkeypatch) -> Path:
    """The working directory, with files that hide modules of the same name if imported."""
    for name in NAMES:
        (tmp_path / f"{name}.py").write_text("raise ImportError('from the working directory')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    return tmp_path


def test_code_gets_its_arguments_and_this_package(decoys):
    code = f"import {', '.join(NAMES)}, sys, moebius; print(moebius.__file__, *sys.argv[1:])"
    done = subprocess.run(
        python_command(code, "a b", "c"), capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{Path(moebius.__file__)} a b c\n"


def test_the_folder_of_the_package_hides_nothing(tmp_path, monkeypatch):
    """In a folder of installed packages, there may be one with the name of a standard module."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    (tmp_path / "queue.py").write_text("raise ImportError('from the folder of the package')")
    (tmp_path / "moebius").symlink_to(Path(moebius.__file__).parent)
    monkeypatch.setattr("moebius.data.child.__file__", f"{tmp_path}/moebius/data/child.py")
    monkeypatch.setattr(Path, "resolve", lambda path: path)
    code = "import queue, sys, moebius; print(moebius.__file__)"
    done = subprocess.run(python_command(code), capture_output=True, text=True, check=False)
    assert done.stdout == f"{tmp_path}/moebius/__init__.py\n", done.stderr


def test_the_environment_is_passed_on(monkeypatch):
    monkeypatch.setenv("SOME_SETTING", "value")
    code = "import os; print(os.environ['SOME_SETTING'])"
    done = subprocess.run(python_command(code), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == os.environ["SOME_SETTING"]
