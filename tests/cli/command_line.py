"""Call the command line in this process, and train a run so small that it takes a second."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

SECONDS = 120
"""How long a process that a test starts may take to start or to stop."""


class Result(NamedTuple):
    """The exit code and the output of a call of the command line."""

    code: int
    out: str
    err: str


Call = Callable[..., Result]


def refused(result: Result, code: int, *parts: str) -> None:
    """Assert that the call failed with this code and one line that contains all the parts."""
    assert result.code == code, result
    assert result.err.count("\n") == 1 and result.err.startswith("moebius: "), result.err
    assert "Traceback" not in result.err + result.out
    for part in parts:
        assert part in result.err, result.err


def write_text(path: Path, lines: int = 600) -> Path:
    """Write a text of that many lines and return its path."""
    path.write_text(
        "".join(f"line {number}: {number * number} is its square\n" for number in range(lines))
    )
    return path


def micro(folder: Path, **changes: Any) -> list[str]:
    """Return the flags of a run of ten steps on a small text in `folder`.

    In the name of a change, `__` stands for the dot: `train__steps=5`.
    """
    source = folder / "text.txt"
    if not source.exists():
        write_text(source)
    settings: dict[str, Any] = {
        "data.source": source,
        "data.tokenizer": "bytes",
        "data.val_fraction": 0.2,
        "data.cache": folder / "cache",
        "model.vocab_size": 257,
        "model.dim": 32,
        "model.num_layers": 2,
        "model.num_experts": 3,
        "model.router_top_k": 1,
        "train.steps": 10,
        "train.batch_size": 2,
        "train.seq_len": 32,
        "train.eval_every": 5,
        "train.eval_tokens": 500,
        "train.checkpoint_every": 4,
        "train.log_every": 2,
        "train.warmup_steps": 2,
        "train.device": "cpu",
        "train.out": folder / "runs",
    }
    settings |= {name.replace("__", "."): value for name, value in changes.items()}
    return [text for name, value in settings.items() for text in (f"--{name}", str(value))]


def metrics(run: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(run: Path) -> list[float]:
    """Return the training losses that a run has logged."""
    return [line["loss"] for line in metrics(run)]


def steps(run: Path) -> list[int]:
    """Return the steps that a run has logged."""
    return [line["step"] for line in metrics(run)]
