"""What `moebius train` and `moebius resume` print after the last step, with a made-up run."""

import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from moebius.cli import training
from moebius.config import Config, DataConfig, ObserveConfig
from moebius.errors import NumericError
from moebius.infer.training_sample import TrainingSamples
from moebius.observe.sink import Sample
from moebius.parallel.process import Process
from moebius.train.evaluate import Evaluation
from moebius.train.run_directory import RunDirectory

FILE = Config(data=DataConfig(source="book.txt"), observe=ObserveConfig(progress=False))
LIBRARY = replace(FILE, data=DataConfig(source="python-stdlib"))


def session(config: Config = FILE, root: str = "runs/a", rank: int = 0) -> Any:
    return SimpleNamespace(
        config=config,
        run=RunDirectory(Path(root)),
        process=Process(rank, world_size=2),
        state=SimpleNamespace(step=7, tokens=0, placement=SimpleNamespace(has_parts=False)),
        device=torch.device("cpu"),
    )


@pytest.fixture
def prompts(monkeypatch) -> list[str]:
    """The prompts of the samples so far. Every sample is the same text, and no run trains."""
    given: list[str] = []

    def write(samples: TrainingSamples) -> Sample:
        given.append(samples.prompt)
        text = f"{samples.prompt}one\n\ttwo \x1b[31mred\n"
        return Sample(7, samples.prompt, text)

    monkeypatch.setattr(TrainingSamples, "__call__", write)
    monkeypatch.setattr(training, "train", lambda *_, **__: Evaluation(1.23456, 2.0, 34_567))
    return given


@pytest.fixture
def printed(prompts, capsys) -> Callable[..., str]:
    """A function that returns what a session prints on stdout."""

    def call(*arguments: Any, **named: Any) -> str:
        training.train_to_end(session(*arguments, **named))
        return capsys.readouterr().out

    return call


def test_the_lines_after_a_run(printed):
    assert printed() == (
        "\nvalidation loss 1.2346 nats per token, 2.0000 bits per byte "
        "(34,567 held-out tokens, 0 bytes)\n"
        "\na sample:\n"
        "    one\n"
        "    \ttwo \\x1b[31mred\n"
        "\nrun directory: runs/a\n"
        "more text:     moebius generate runs/a --prompt 'The '\n"
    )


def test_a_model_of_python_begins_with_python(printed, prompts):
    out = printed(LIBRARY)
    assert prompts == ["def "]
    assert "\n    def one\n" in out and out.endswith("--prompt 'def '\n")


@pytest.mark.parametrize("root", ["runs/my run", "runs/it's", "runs/$HOME;ls", "runs/-a"])
def test_the_command_for_more_text_can_be_pasted_into_a_shell(printed, root):
    line = printed(root=root).splitlines()[-1].removeprefix("more text:")
    assert shlex.split(line) == ["moebius", "generate", root, "--prompt", "The "]


def test_only_the_first_process_prints(printed, prompts):
    assert printed(rank=1) == "" and prompts == []


def test_a_run_that_fails_ends_without_these_lines(printed, prompts, monkeypatch, capsys):
    def fail(*_: Any, **__: Any) -> Evaluation:
        raise NumericError("too many updates")

    monkeypatch.setattr(training, "train", fail)
    with pytest.raises(NumericError):
        printed()
    assert capsys.readouterr().out == "" and prompts == []


def test_without_samples_there_is_none(printed, prompts):
    silent = replace(FILE, observe=replace(FILE.observe, sample_tokens=0))
    out = printed(silent)
    assert "a sample" not in out and prompts == [] and out.endswith("--prompt 'The '\n")
