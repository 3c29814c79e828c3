"""Folders and globs: which files, in which order, what becomes of links, and what is counted."""

import errno
import os
from pathlib import Path

import pytest

from moebius.data import listing
from moebius.data.listing import BROKEN, NO_FILE, fixed_part
from moebius.data.tally import HIDDEN, NOT_ENTERED, READ_ELSEWHERE, UNREADABLE, Tally
from moebius.errors import StorageError


def folder_files(root: Path, tally: Tally) -> list[Path]:
    return [Path(file) for file in listing.folder_files(root, tally)]


def glob_files(pattern: str, tally: Tally) -> list[Path]:
    return [Path(file) for file in listing.glob_files(pattern, tally)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder beside another one, with links of every kind in both."""
    for name in ("root/b.txt", "root/a/z.txt", "root/a/deep/y.txt", "root/.hidden/x.txt",
                 "outside/o.txt", "outside/inner/p.txt", "root/.env"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    root = tmp_path / "root"
    (root / "to-outside").symlink_to(tmp_path / "outside")
    (root / "to-outside-again").symlink_to(tmp_path / "outside")
    (root / "to-a").symlink_to(root / "a")
    (root / "to-itself").symlink_to(root)
    (root / "to-above").symlink_to(tmp_path)
    (root / "broken").symlink_to(root / "nowhere")
    (root / "circle").symlink_to(root / "circle")
    (root / "file-link.txt").symlink_to(tmp_path / "outside" / "o.txt")
    (tmp_path / "outside" / "back").symlink_to(root)
    (tmp_path / "outside" / "inner" / "up").symlink_to(tmp_path / "outside")
    os.mkfifo(root / "pipe")
    return root


def counts(tally: Tally) -> dict[str, int]:
    return {reason: files.count for reason, files in tally.passed_over.items()}


READ = [
    "a/deep/y.txt",
    "a/z.txt",
    "b.txt",
    "file-link.txt",
    "to-outside/inner/p.txt",
    "to-outside/o.txt",
]


def test_links_are_followed_once_and_circles_end_and_the_rest_is_counted(root):
    tally = Tally()
    files = folder_files(root, tally)
    assert [file.relative_to(root).as_posix() for file in files] == READ
    assert counts(tally) == {HIDDEN: 2, READ_ELSEWHERE: 6, BROKEN: 2, NO_FILE: 1}
    assert tally.passed_over[BROKEN].first == str(root / "broken")


def test_a_glob_over_folders_follows_links_like_a_folder(root):
    tally = Tally()
    files = glob_files(f"{root}/**", tally)
    assert [file.relative_to(root).as_posix() for file in files] == READ
    assert counts(tally) == {READ_ELSEWHERE: 6, BROKEN: 2, NO_FILE: 1}
    assert glob_files(f"{root}/**/*.txt", Tally()) == files
    assert glob_files(f"{root}/**/**/*.txt", Tally()) == files
    assert glob_files(f"{root}/**/deep/*", Tally()) == [root / "a/deep/y.txt"]
    assert glob_files(f"{root.parent}/*/**/y.txt", Tally()) == [root / "a/deep/y.txt"]
    over_two_folders = glob_files(f"{root.parent}/[or]*/**/*.txt", Tally())
    assert over_two_folders == sorted(over_two_folders, key=Path.as_posix)
    assert len(over_two_folders) == 6


def test_a_glob_that_goes_through_links_reads_each_file_once(root):
    files = glob_files(f"{root}/*/*.txt", Tally())
    assert [file.relative_to(root).as_posix() for file in files] == [
        "a/z.txt",
        "to-itself/b.txt",
        "to-itself/file-link.txt",
        "to-outside/o.txt",
    ]


def test_files_in_folders_that_a_glob_matches_but_does_not_enter_are_counted(root):
    tally = Tally()
    assert glob_files(f"{root}/a/*", tally) == [root / "a/z.txt"]
    assert counts(tally) == {NOT_ENTERED: 1}
    assert tally.passed_over[NOT_ENTERED].first == str(root / "a/deep")
    tally = Tally()
    assert glob_files(f"{root}/*.txt", tally) == [root / "b.txt", root / "file-link.txt"]
    assert counts(tally) == {}


def test_hidden_files_are_matched_if_the_glob_says_so(root):
    assert glob_files(f"{root}/**/.env", Tally()) == [root / ".env"]
    assert glob_files(f"{root}/.hidden/**", Tally()) == [root / ".hidden/x.txt"]
    assert glob_files(f"{root}/.h*/*", Tally()) == [root / ".hidden/x.txt"]


def test_relative_globs(root, monkeypatch):
    monkeypatch.chdir(root / "a")
    assert glob_files("**/*.txt", Tally()) == [Path("deep/y.txt"), Path("z.txt")]
    assert glob_files("*.txt", Tally()) == [Path("z.txt")]


@pytest.mark.parametrize(
    ("pattern", "part"),
    [("a/b/*.txt", "a/b"), ("/a/**/b", "/a"), ("*", ""), ("a[b]/c", ""), ("a/b", "a/b")],
)
def test_the_fixed_part_of_a_glob(pattern, part):
    assert fixed_part(pattern) == part


@pytest.fixture
def locked(root, monkeypatch) -> Path:
    """A folder that may not be listed, such as lost+found; root may list any real one."""
    locked = root / "lost+found"
    locked.mkdir()
    (locked / "secret.txt").write_text("secret")

    def refusing(function):
        def called(path="."):
            if Path(path) == locked:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return function(path)

        return called

    monkeypatch.setattr(os, "scandir", refusing(os.scandir))
    monkeypatch.setattr(os, "listdir", refusing(os.listdir))
    return locked


@pytest.mark.parametrize("pattern", ["*", "*.txt", "*/*.txt", "**", "**/*.txt"])
def test_a_folder_that_cannot_be_read_is_named_and_counted_and_never_ends_a_glob(
    root, locked, pattern
):
    tally = Tally()
    assert glob_files(f"{root}/{pattern}", tally)
    reasons = {why: files.first for why, files in tally.passed_over.items()}
    is_searched = pattern not in ("*", "*.txt")
    assert (reasons.get(UNREADABLE) == str(locked)) == is_searched
    if pattern == "*":
        assert reasons[NOT_ENTERED] == str(root / "a")


def test_a_folder_that_cannot_be_read_is_an_error_only_if_it_is_the_source(root, locked):
    tally = Tally()
    assert folder_files(root, tally)
    assert counts(tally)[UNREADABLE] == 1 and tally.passed_over[UNREADABLE].first == str(locked)
    assert any(line.startswith("WARNING") and str(locked) in line for line in tally.lines())
    with pytest.raises(StorageError, match=r"lost\+found: Permission denied"):
        folder_files(locked, Tally())


def test_a_glob_does_not_look_below_what_it_matches(root, monkeypatch):
    """A folder beside the files may hold millions of others."""
    listed: list[str] = []
    for name in ("scandir", "listdir"):
        function = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda path, call=function: (listed.append(str(path)), call(path))[1]
        )
    glob_files(f"{root}/*", tally := Tally())
    assert set(listed) == {str(root)}
    assert counts(tally)[NOT_ENTERED] >= 2
    (line,) = [line for line in tally.lines() if "passed over" in line]
    assert "folder that this glob does not enter (** does): " in line and " folders, " in line
