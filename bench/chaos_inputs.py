"""Malformed command lines, configurations, texts and tokenizers, each with its exit codes."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class Case(NamedTuple):
    """A command that must fail with one line on stderr."""

    arguments: list[str]
    """Words of the command line after `moebius`."""
    exit_code: int


def make_case(number: int, folder: Path, chance: random.Random) -> Case:
    """Return a malformed command, whose files are written into the folder.

    The kinds of mistakes take turns as the number counts up; `chance` decides the details.
    """
    return MISTAKES[number % len(MISTAKES)](folder, chance)


def _bad_flag(folder: Path, chance: random.Random) -> Case:
    flags = [
        "data.val_fraction=1",
        "data.vocab_size=99999999",
        "model.dim=-1",
        "model.dim=1e3",
        "model.dmi=3",
        "model.num_experts=4,,4",
        "model.num_heads=7",
        "model.router_type=topk",
        "observe.cv.action=panic",
        "observe.cv=3",
        "train.device=tpu",
        "train.lr=nan",
        "train.name=../x",
        "train.steps=0",
    ]
    return Case(["train", "tiny", f"--{chance.choice(flags)}"], exit_code=2)


def _bad_toml(folder: Path, chance: random.Random) -> Case:
    text = b'base = "tiny"\n[model]\ndim = 128\n[train]\nsteps = 10\nlr = 0.01\n'
    position = chance.randrange(1, len(text))
    broken = chance.choice(
        [
            text[:position] + b"\xff" + text[position:],
            text.replace(b"]", b"", 1),
            text.replace(b"= 10", b'= "ten"'),
            text.replace(b"dim", b"dmi"),
            text.replace(b"tiny", b"tinny"),
            text + b"steps = 3\n",
            text.replace(b"128", b"[1"),
        ]
    )
    (folder / "own.toml").write_bytes(broken)
    return Case(["train", str(folder / "own.toml")], exit_code=2)


def _bad_text(folder: Path, chance: random.Random) -> Case:
    text = bytearray(b"some words and a line\n" * 500)
    path = folder / "text.txt"
    kind = chance.choice(["not UTF-8", "empty", "short", "missing", "folder"])
    if kind == "not UTF-8":
        text[chance.randrange(len(text))] = chance.randrange(0x80, 0x100)
    elif kind == "empty":
        text.clear()
    elif kind == "short":
        del text[5:]
    if kind == "folder":
        path.mkdir()
    elif kind != "missing":
        path.write_bytes(text)
    return Case(_train_on(path, folder), exit_code=3)


def _bad_lines(folder: Path, chance: random.Random) -> Case:
    lines = [b'{"text": "line %d of a text"}\n' % number for number in range(300)]
    lines[chance.randrange(300)] = chance.choice(
        [b'{"text": \n', b'{"txet": "x"}\n', b"[1, 2]\n", b'{"text": 3}\n', b'{"text": "\xff"}\n']
    )
    (folder / "text.jsonl").write_bytes(b"".join(lines))
    return Case(_train_on(folder / "text.jsonl", folder), exit_code=3)


def _bad_tokenizer(folder: Path, chance: random.Random) -> Case:
    (folder / "first.txt").write_text("".join(f"line {n} of a text\n" for n in range(500)))
    (folder / "second.txt").write_text("another document\n" * 50)
    content = chance.choice(
        [
            b"{",
            b"[]",
            b"{}",
            b"\xff\xfe",
            b'{"model": {"type": "BPE"}}',
            chance.randbytes(100),
            b"",
        ]
    )
    (folder / "own.json").write_bytes(content)
    flag = f"--data.tokenizer={folder / 'own.json'}"
    return Case([*_train_on(folder / "*.txt", folder), flag], exit_code=3)


def _bad_name(folder: Path, chance: random.Random) -> Case:
    names = ["..", ".", "a/b", "/tmp/x", "x" * 65, " ", "a b", "a\nb", "-" * 70, "ü"]
    return Case(["train", "tiny", f"--train.name={chance.choice(names)}"], exit_code=2)


MISTAKES: list[Callable[[Path, random.Random], Case]] = [
    _bad_flag,
    _bad_toml,
    _bad_text,
    _bad_lines,
    _bad_tokenizer,
    _bad_name,
]


def _train_on(source: Path, folder: Path) -> list[str]:
    """Return the command that trains on a source and leaves everything in the folder."""
    return [
        "train",
        "tiny",
        f"--data.source={source}",
        f"--data.cache={folder / 'cache'}",
        f"--train.out={folder / 'runs'}",
    ]
