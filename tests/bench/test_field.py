"""The field for comparing models: what is held out is not in the training text."""

from pathlib import Path

import pytest


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text * 50)
    return path


def install(packages: Path, name: str, *folders: str) -> None:
    """Install a distribution of these folders, with a module in each and a README of its own."""
    information = f"{name}-1.0.dist-info"
    for folder in folders:
        write(packages / folder / f"{name}.py", f"{name} = {folder!r}\n")
    write(packages / information / "METADATA", f"Name: {name}\nVersion: 1.0\n\nwords of {name}\n")
    files = [*(f"{folder}/{name}.py" for folder in folders), f"{information}/METADATA"]
    files.append(f"__pycache__/{name}.pyc")
    write(packages / "__pycache__" / f"{name}.pyc", "compiled")
    (packages / information / "RECORD").write_text("".join(f"{file},,\n" for file in files))


def test_what_is_installed_together_is_one_project(script, tmp_path):
    field = script("field")
    install(tmp_path, "Pillow", "PIL", "pillow.libs")
    install(tmp_path, "space_a", "space")
    install(tmp_path, "space_b", "space", "other")
    install(tmp_path, "alone", "alone")
    write(tmp_path / "unknown" / "a.py", "x = 1\n")
    write(tmp_path / "module.py", "x = 2\n")
    texts = field.texts_by_project(tmp_path)
    tops = {name: {path.relative_to(tmp_path).parts[0] for path in texts[name]} for name in texts}
    assert tops == {
        "PIL": {"PIL", "pillow.libs", "Pillow-1.0.dist-info"},
        "other": {"space", "other", "space_a-1.0.dist-info", "space_b-1.0.dist-info"},
        "alone": {"alone", "alone-1.0.dist-info"},
        "unknown": {"unknown"},
    }


def test_enough_is_held_out_and_no_large_project(script):
    field = script("field")
    sizes = {f"p{number}": 100 for number in range(200)} | {"huge": 5000}
    held_out = field.choose_held_out(sizes)
    assert 0 <= sum(sizes[name] for name in held_out) - field.HELD_OUT * 25_000 < 100
    assert "huge" not in held_out
    assert field.choose_held_out(dict(reversed(sizes.items()))) == held_out
    # A further project does not change which of the others are chosen first.
    more = field.choose_held_out(sizes | {"more": 100})
    assert len(held_out - more) <= 1


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a/b.py", "code"),
        ("license.py", "code"),
        ("README.md", "prose"),
        ("x-1.0.dist-info/METADATA", "prose"),
        ("LICENSE.txt", ""),
        ("third_party_notices.md", ""),
        ("a.so", ""),
        ("RECORD", ""),
    ],
)
def test_kinds_of_files(script, name, kind):
    assert script("field").kind_of(Path(name)) == kind


def test_copies_of_held_out_text_are_not_trained_on(script, tmp_path, monkeypatch):
    field, packages, folder = script("field"), tmp_path / "packages", tmp_path / "field"
    for name in ("kept", "left"):
        install(packages, name, name)
    own = write(packages / "left" / "own.py", "secret = 1\n").read_text()
    write(packages / "kept" / "vendored" / "left" / "edited.py", "secret = 2\n")  # a near copy
    write(packages / "kept" / "renamed.py", "secret = 1\n")
    write(packages / "kept" / "twice.py", "a = 1\n")
    write(packages / "kept" / "again.py", "a = 1\n")
    write(packages / "kept" / "own.py", "b = 1\n")
    (packages / "kept" / "small.py").write_text("b = 1\n")
    (packages / "kept" / "link.py").symlink_to(packages / "left" / "own.py")
    monkeypatch.setattr(field, "choose_held_out", lambda sizes: {"left"})
    sizes = field.make_field(folder, packages)
    found = {
        part: sorted(str(path.relative_to(folder / part)) for path in (folder / part).rglob("*.*"))
        for part in ("held_out", "train")
    }
    information = "prose/{0}-1.0.dist-info"
    assert found["held_out"] == [
        "code/left/left.py",
        "code/left/own.py",
        information.format("left"),
        f"{information.format('left')}/METADATA.txt",
    ]
    assert found["train"] == [
        "code/kept/again.py",
        "code/kept/kept.py",
        "code/kept/own.py",
        information.format("kept"),
        f"{information.format('kept')}/METADATA.txt",
    ]
    assert sizes["held_out"][:2] == (1, 3) and sizes["train"][:2] == (1, 4)
    texts = [path.read_text() for path in (folder / "train").rglob("*.*") if path.is_file()]
    assert own not in texts and not any("secret" in text for text in texts)
