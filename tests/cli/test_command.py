"""Tests of the interface of commands, using the existing commands."""

import pytest

from moebius.cli.command import CONFIG, Command
from moebius.cli.registry import commands


@pytest.mark.parametrize("command", commands().values(), ids=commands())
def test_what_a_command_says_of_itself_agrees(command: Command):
    assert command.usage_line == f"moebius {command.name} {command.usage}"
    assert ("[CONFIG]" in command.usage) == (CONFIG in command.arguments)
    assert ("[--section.key value ...]" in command.usage) == bool(command.settings)
    assert command.summary[0].islower() and not command.summary.endswith(".")
    assert command.description[0].isupper() and command.description.endswith(".")
    assert command.examples
    for example in command.examples:
        assert example.startswith(f"moebius {command.name}") and len(example) < 95
