"""A leading ~ is the home folder, or a named folder if there is none."""

import os
import pwd
import tempfile
from pathlib import Path

import pytest

from moebius.config.paths import expanded, free_path
from moebius.config.printable import print_note


def test_a_leading_tilde_is_the_home_folder(monkeypatch, capsys):
    monkeypatch.setenv("HOME", "/home/someone")
    assert expanded("~/a/b") == Path("/home/someone/a/b")
    assert expanded("~") == Path("/home/someone")
    assert expanded("a/~/b") == Path("a/~/b")
    assert expanded("~nobody-of-this-name/b") == Path("~nobody-of-this-name/b")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("home", [None, "", "~", "/"])
def test_without_a_home_folder_the_tilde_is_a_named_folder_and_no_folder_called_tilde(
    monkeypatch, capsys, home
):
    def unknown(user):
        raise KeyError(user)

    monkeypatch.setattr(pwd, "getpwuid", unknown)  # a container's user need not be in passwd
    monkeypatch.delenv("HOME", raising=False)
    if home is not None:
        monkeypatch.setenv("HOME", home)
    print_note.cache_clear()
    folder = Path(tempfile.gettempdir(), f"home-of-user-{os.getuid()}")
    for _ in range(2):
        assert expanded("~/.cache/moebius") == folder / ".cache/moebius"
    assert capsys.readouterr().err == (
        f"moebius: there is no home folder (HOME names none); ~ is {folder}\n"
    )


def test_a_name_that_is_taken_gets_a_number(tmp_path):
    path = tmp_path / "a.damaged"
    assert free_path(path) == path
    path.touch()
    (tmp_path / "a.damaged-2").symlink_to(tmp_path / "gone")
    assert free_path(path) == tmp_path / "a.damaged-3"
