"""Tests of `moebius generate`."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from moebius.infer.generate import Piece
from tests.cli.command_line import losses, micro, refused


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
        (["x", "--top-p", "0"], "--top-p 0.0: must be above 0 and at most 1"),
        (["x", "--top-p", "nan"], "--top-p nan: must be above 0 and at most 1"),
        (["x", "--top-k", "-2"], "--top-k -2: must be at least 0"),
        (["x", "--min-p", "1.5"], "--min-p 1.5: must be from 0 to 1"),
        (["x", "--stop", ""], "--stop '': must not be empty"),
        (["x", "--stop", "\udcff"], "--stop '\\udcff': must be UTF-8"),
        (["x", "--num", "0"], "--num 0: must be at least 1"),
        (["x", "--batch-size", "0"], "--batch-size 0: must be at least 1"),
        (["x", "--prompt", "a", "--prompts", "b"], "--prompt, --prompts: give one of them"),
        (["x", "--step", "last"], "--step: not an integer: 'last'"),
        ([], "RUN is missing; usage: `moebius generate RUN [options]`"),
    ],
)
def test_words_that_are_not_understood(words, part, moebius):
    refused(moebius("generate", *words), 2, part)


@pytest.mark.parametrize(("is_terminal", "shown"), [(True, "\\x1b[1m"), (False, "\x1b[1m")])
def test_a_terminal_is_not_sent_control_characters(
    is_terminal, shown, trained, monkeypatch, moebius
):
    pieces = [Piece(0, "\x1b[1m", 1, None), Piece(0, "bold", 2, "length")]
    monkeypatch.setattr("moebius.infer.generate.write", lambda *_, **__: iter(pieces))
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


def test_prompts_of_a_file_are_written_in_their_order(trained, tmp_path: Path, moebius):
    run, prompts = trained / "runs" / "run", tmp_path / "prompts.txt"
    prompts.write_text("line 1\n\nline 22:\nl\n")
    result = moebius("generate", run, "--prompts", prompts, "--max-tokens", "4", "--num", "2")
    assert result.code == 0 and not result.err
    parts = result.out.split("--- prompt ")
    starts = [f"{prompt}, text {text} ---" for prompt in (1, 2, 3) for text in (1, 2)]
    for part, start, prompt in zip(
        parts[1:], starts, ["line 1", "line 1", "line 22:", "line 22:", "l", "l"], strict=True
    ):
        assert part.startswith(f"{start}\n{prompt}")


@pytest.mark.parametrize("batch_size", ["1", "4"])
def test_json_has_one_object_for_each_text(batch_size, trained, tmp_path: Path, moebius):
    run, prompts = trained / "runs" / "run", tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "a\\nb"}\n{"prompt": "", "id": 3}\n')
    options = ("--num", "3", "--max-tokens", "5", "--json", "--batch-size", batch_size)
    result = moebius("generate", run, "--prompts", prompts, *options)
    lines = [json.loads(line) for line in result.out.splitlines()]
    assert [(line["prompt"], line["prompt_number"], line["sample"]) for line in lines] == [
        (prompt, number, sample)
        for number, prompt in enumerate(["a\nb", ""])
        for sample in range(3)
    ]
    assert all(line["end"] in ("length", "end_of_text") for line in lines)
    assert all(line["tokens"] <= 5 and isinstance(line["text"], str) for line in lines)
    alone = moebius("generate", run, "--prompt", "a\nb", "--max-tokens", "5", "--json")
    assert json.loads(alone.out) == lines[0]


def test_the_checkpoint_of_a_step(trained, moebius):
    run = trained / "runs" / "run"
    words = ("generate", run, "--max-tokens", "20", "--temperature", "0")
    assert moebius(*words, "--step", "10").out == moebius(*words).out
    assert moebius(*words, "--step", "8").code == 0
    refused(moebius(*words, "--step", "7"), 4, "no checkpoint of step 7; there are those of steps")


def test_a_prompt_longer_than_the_context_is_announced(trained, moebius):
    run = trained / "runs" / "run"
    result = moebius("generate", run, "--prompt", "x" * 50, "--max-tokens", "3")
    assert result.code == 0 and result.out.startswith("x" * 50)
    refused(result._replace(code=2), 2, "the prompt has 51 tokens", "at most", "reads the last 19")
    assert not moebius("generate", run, "--prompt", "x" * 31, "--max-tokens", "3").err


def test_the_speed_is_printed_apart_from_the_text(trained, moebius):
    run = trained / "runs" / "run"
    result = moebius("generate", run, "--max-tokens", "5", "--speed", "--stop", "never")
    assert result.code == 0 and "tokens/s" in result.err and "tokens/s" not in result.out


def test_speculation_writes_the_same_and_tells_what_was_accepted(trained, tmp_path: Path, moebius):
    refused(moebius("generate", trained / "runs" / "run", "--speculate"), 2, "--speculate: needs")
    flags = micro(tmp_path, model__use_mtp="true", train__name="mtp", train__steps=2)
    assert moebius("train", "tiny", *flags).code == 0
    words = ("generate", tmp_path / "runs" / "mtp", "--temperature", "0", "--max-tokens", "40")
    plain, drafted = moebius(*words), moebius(*words, "--speculate")
    assert plain.out == drafted.out
    assert "drafted tokens accepted" in drafted.err and not plain.err


def test_each_prompt_is_tokenized_once(trained, monkeypatch, moebius):
    from moebius.data import Tokenizer

    encode, encoded = Tokenizer.encode, []

    def counted(self, text):
        encoded.append(text)
        return encode(self, text)

    monkeypatch.setattr(Tokenizer, "encode", counted)
    words = ("--prompt", "line 7", "--num", "3", "--max-tokens", "2", "--json")
    assert moebius("generate", trained / "runs" / "run", *words).code == 0
    assert encoded.count("line 7") == 1
