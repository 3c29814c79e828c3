"""Import the scripts of bench/, which import each other by name, as when they are run."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture
def script(monkeypatch) -> Callable[[str], ModuleType]:
    """A function that returns a script by its name."""
    monkeypatch.setattr(sys, "path", [str(BENCH), *sys.path])
    return importlib.import_module
