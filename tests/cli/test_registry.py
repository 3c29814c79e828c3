"""Tests of the list of commands."""

import sys
from pathlib import Path
from types import ModuleType

import moebius.cli as package
from moebius.cli import registry
from moebius.cli.command import RUN, Command
from tests.cli.command_line import Result

SHARED = {
    "__init__", "command", "continuations", "devices", "help", "main", "output", "parse",
    "prompts", "registry", "sample", "stopping", "training",
}  # fmt: skip


def test_every_module_of_the_folder_that_is_a_command_is_registered():
    modules = {path.stem for path in Path(package.__file__).parent.glob("*.py")} - SHARED
    assert modules == {name.rpartition(".")[2] for name in registry.MODULES}


def test_a_new_command_takes_a_module_and_a_line(monkeypatch, moebius):
    module = ModuleType("a_new_command")
    module.COMMAND = Command(  # pyright: ignore[reportAttributeAccessIssue]
        name="watch",
        usage="RUN",
        summary="watch a run",
        description="Watch a run.",
        examples=("moebius watch runs/my-run",),
        arguments=(RUN,),
        run=lambda options: print("watching", options.run),
    )
    monkeypatch.setitem(sys.modules, "a_new_command", module)
    monkeypatch.setattr(registry, "MODULES", (*registry.MODULES, "a_new_command"))
    assert moebius("watch", "runs/x") == Result(0, "watching runs/x\n", "")
    assert "  watch     watch a run\n" in moebius("--help").out
    assert moebius("watch", "--help").out.startswith("usage: moebius watch RUN\n\nWatch a run.\n")
