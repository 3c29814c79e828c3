"""Tests of `moebius generate`."""

import shutil
import sys
from pathlib import Path

import pytest

from tests.cli.command_line import losses, refused


def test_generate_continues_the_prompt_and_depends_on_the_seed(trained, moebius):
    run = trained / "runs" / "run"
    first, again, different = (
        moebius("generate", run, "--prompt", "line 3", "--max-tokens", "30", "--seed", seed)
        for seed in ("5", "5", "6")
    )
    assert first.code == again.code == different.code == 0 and not first.err
    assert first.out.startswith("line 3") and first.out.endswith("\n")
    assert first.out == again.out != different.out
    greedy = [
        moebius(
            "generate",
            run,
            "--max-tokens",
            "8",
            "--temperature",
            temperature,
            "--seed",
            seed,
            "--device",
            "cpu",
        ).out
        for seed, temperature in (("1", "0"), ("2", "0"), ("3", "1e-38"), ("4", "5e-324"))
    ]
    assert len(set(greedy)) == 1
    assert moebius("generate", run, "--prompt", "a", "--max-tokens", "0").out == "a\n"


def test_a_run_without_checkpoints(trained, tmp_path: Path, moebius):
    run = tmp_path / "bare"
    run.mkdir()
    for name in ("config.toml", "run.json", "tokenizer.json"):
        (run / name).write_bytes((trained / "runs" / "run" / name).read_bytes())
    result = moebius("generate", run, "--prompt", "never shown")
    refused(result, 4, f"{run / 'checkpoints'}: no checkpoint yet")
    assert not result.out
    refused(
        moebius("generate", run, "--device", "gpu"),
        2,
        "--device 'gpu': must be auto, cpu, cuda or cuda:N",
    )
    resumed = moebius("resume", run)  # as if killed before its first checkpoint
    assert resumed.code == 0 and f"resuming {run} at step 0 of 10" in resumed.out
    assert losses(run) == losses(trained / "runs" / "run")


def test_a_damaged_checkpoint_is_passed_over_aloud_and_apart_from_the_text(
    trained, tmp_path: Path, moebius
):
    run = tmp_path / "damaged"
    shutil.copytree(trained / "runs" / "run", run)
    (run / "checkpoints" / "step-00000010" / "model.safetensors").write_bytes(b"no")
    result = moebius("generate", run, "--prompt", "line", "--max-tokens", "3")
    assert result.code == 0 and result.out.startswith("line")
    refused(result._replace(code=4), 4, "passed over", "step-00000010")


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["x", "--max-tokens", "many"], "--max-tokens: not an integer: 'many'"),
        (["x", "--max-token", "3"], "--max-token: unknown option; did you mean --max-tokens?"),
        (["x", "--temperature", "-1"], "--temperature -1.0: must be a finite number, at least 0"),
        (["x", "--temperature", "nan"], "--temperature nan"),
        (["x", "--max-tokens", "-3"], "--max-tokens -3: must be at least 0"),
        (["x", "--seed", str(2**64)], "--seed 18446744073709551616: must be from 0 to"),
        (["x", "--prompt", "\udcff"], "--prompt '\\udcff': must be UTF-8"),
        (["gone"], "gone: there is no such directory"),
        ([], "RUN is missing; usage: `moebius generate RUN [options]`"),
    ],
)
def test_words_that_are_not_understood(words, part, moebius):
    refused(moebius("generate", *words), 2, part)


@pytest.mark.parametrize(("is_terminal", "shown"), [(True, "\\x1b[1m"), (False, "\x1b[1m")])
def test_a_terminal_is_not_sent_control_characters(
    is_terminal, shown, trained, monkeypatch, moebius
):
    monkeypatch.setattr("moebius.infer.generate.generate", lambda *_: iter(["\x1b[1m", "bold"]))
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda _: is_terminal)
    result = moebius("generate", trained / "runs" / "run")
    assert result.out == f"{shown}bold\n"


def test_a_tokenizer_that_is_gone_or_has_changed_is_one_line(trained, tmp_path: Path, moebius):
    run = tmp_path / "run"
    shutil.copytree(trained / "runs" / "run", run)
    tokenizer = run / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"a":', '"?":', 1).replace('"b":', '"a":'))
    refused(moebius("generate", run), 3, f"{tokenizer}: the run's tokenizer has changed")
    tokenizer.unlink()
    refused(moebius("generate", run), 3, f"{tokenizer}: the run's tokenizer was deleted")


@pytest.mark.parametrize(("device", "allowed"), [("gpu", "did you mean cuda?"), ("cuda:99", "99")])
def test_a_wrong_device_is_named_as_the_option_that_it_is(trained, device, allowed, moebius):
    result = moebius("generate", trained / "runs" / "run", "--device", device)
    refused(result, 2, f"--device '{device}': ", allowed)
    assert "train.device" not in result.err
