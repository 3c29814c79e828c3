"""The command line end to end: what it prints, what it leaves on disk, and every error as one line with its exit code."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from moebius import cli
from moebius.config import Config
from moebius.data.prepare import document_hash
from moebius.observe.balance import NOTHING
from moebius.presets import PRESETS

SECRET = "correct horse battery staple"


class Result(NamedTuple):
    code: int
    out: str
    err: str


Call = Callable[..., Result]


@pytest.fixture
def moebius(capsys) -> Call:
    """The command line in this process: starting one costs seconds."""

    def call(*arguments: str | Path) -> Result:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return Result(int(ended.value.code or 0), out, err)

    return call


def write_text(path: Path, lines: int = 600) -> Path:
    path.write_text("".join(f"line {number}: {number * number} is its square\n" for number in range(lines)))
    return path


def micro(folder: Path, **changes: Any) -> list[str]:
    """Flags of a run of ten steps on a small text in `folder`."""
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


def refused(result: Result, code: int, *said: str) -> None:
    assert result.code == code, result
    assert result.err.count("\n") == 1 and result.err.startswith("moebius: "), result.err
    assert "Traceback" not in result.err + result.out
    for part in said:
        assert part in result.err, result.err


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The folder of a run called `run`, ten steps long."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", "tiny", *micro(folder, train__name="run")])
    assert not ended.value.code
    return folder


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


# help


def test_help_is_quick_and_imports_no_torch():
    seconds, shown = [], ""
    for _ in range(3):
        start = time.perf_counter()
        shown = subprocess.run([sys.executable, "-m", "moebius", "--help"], capture_output=True, text=True, check=True).stdout
        seconds.append(time.perf_counter() - start)
    print(f"moebius --help: {min(seconds):.2f} s")
    assert min(seconds) < 1.0  # half a second is promised; this machine may be busy
    assert all(command in shown for command in ("train", "resume", "data", "generate"))

    heavy = "{'torch', 'numpy', 'rich'}"
    code = f"import sys, moebius.cli as c\ntry: c.main(['--help'])\nfinally: assert not {heavy} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and not done.stderr


def settings(tree: Any) -> list[str]:
    """The dotted name of every field that is not a section itself."""
    values = {field.name: getattr(tree, field.name) for field in dataclasses.fields(tree)}
    inner = {name: settings(value) if dataclasses.is_dataclass(value) else [] for name, value in values.items()}
    return [f"{name}.{below}" if below else name for name in values for below in inner[name] or [""]]


@pytest.mark.parametrize("command", ["train", "data"])
def test_help_lists_every_setting_and_every_preset(command, moebius):
    result = moebius(command, "--help")
    assert result.code == 0 and not result.err
    for name in settings(Config()):
        assert re.search(rf"--{name}(?![\w.])", result.out), name
    assert all(f"  {name} " in result.out for name in PRESETS)


def test_help_on_a_terminal_without_unicode():
    done = subprocess.run(
        [sys.executable, "-m", "moebius", "train", "--help"],
        capture_output=True, text=True, check=True, env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert "--model.vocab_size INT" in done.stdout and not done.stderr


@pytest.mark.parametrize("command", ["resume", "generate"])
def test_every_command_has_help(command, moebius):
    result = moebius(command, "--help")
    assert result.code == 0 and "RUN" in result.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trian"], "invalid choice: 'trian' (choose from"),
        ([], "the following arguments are required: COMMAND; `moebius --help`"),
        (["generate"], "the following arguments are required: RUN; `moebius generate --help`"),
        (["generate", "x", "--max-tokens", "many"], "--max-tokens: invalid int value: 'many'"),
        (["generate", "x", "--max-token", "3"], "'--max-token': not understood; `moebius generate --help`"),
        (["generate", "x", "--temperature", "-1"], "--temperature -1.0: a finite number, at least 0, is wanted"),
        (["generate", "x", "--temperature", "nan"], "--temperature nan"),
        (["generate", "x", "--seed", str(2**64)], "--seed 18446744073709551616: from 0 to"),
        (["generate", "x", "--prompt", "\udcff"], "--prompt '\\udcff': not UTF-8"),
        (["train", "tiyn"], "preset 'tiyn': one of tiny, "),
        (["train", "tiny", "stray"], "'stray': not understood"),
        (["train", "--train.steps", "5", "tiny"], "'tiny': not understood"),
        (["train", "gone.toml"], "gone.toml: No such file or directory"),
        (["resume", "--train.steps", "5"], "RUN stands before the settings"),
        (["resume", "gone", "--train.steps", "5"], "gone: not a run directory"),
        (["generate", "gone"], "gone: not a run directory, there is no config.toml in it"),
    ],
)
def test_a_command_that_is_not_understood(arguments, said, moebius):
    refused(moebius(*arguments), 2, said)


# a whole run


def test_training_writes_the_run_directory(trained):
    run = trained / "runs" / "run"
    assert {path.name for path in run.iterdir()} == {
        "config.toml", "metrics.jsonl", "events.jsonl", "tokenizer.json", "checkpoints", "tb",
    }  # fmt: skip
    assert [path.name for path in sorted((run / "checkpoints").iterdir())] == [f"step-{step:08d}" for step in (4, 8, 10)]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 5, 6, 8, 10]
    for line in lines:
        for name in ("loss", "lr", "grad_norm", "tokens_per_second", "mfu", "memory_gb", "balance_loss"):
            assert isinstance(line[name], float), name
        assert line["tokens"] == line["step"] * 2 * 32
        for name in NOTHING.keys() | {"router_grad_norm", "layer_balance_loss", "layer_z_loss"}:
            assert len(line[name]) == 2, name
        assert [sum(counts) for counts in line["tokens_per_expert"]] == [64, 64]
        assert ("val_loss" in line) == ("val_bpb" in line) == (line["step"] in (5, 10))


def test_training_tells_what_it_does(trained, moebius):
    result = moebius("train", "tiny", *micro(trained, train__name="told"))
    assert result.code == 0 and not result.err
    run = trained / "runs" / "told"
    for part in ("parameters", "FLOPs per token", "memory", "softmax_topk top-1; number x width by layer: 3x64 (2 layers)"):
        assert part in result.out
    for part in ("step 10/10  loss ", "validation loss ", " bits per byte", "a sample:", f"run directory: {run}"):
        assert part in result.out


def test_a_runs_configuration_repeats_the_run(trained, moebius):
    assert moebius("train", "tiny", *micro(trained, train__out=trained / "unnamed")).code == 0
    (run,) = (trained / "unnamed").iterdir()
    assert re.fullmatch(r"tiny-\d{8}-\d{6}", run.name)
    assert losses(run) == losses(trained / "runs" / "run")
    assert moebius("train", run / "config.toml").code == 0
    (again,) = (path for path in (trained / "unnamed").iterdir() if path != run)
    assert again.name.startswith("config-")
    assert losses(again) == losses(run)
    assert (again / "config.toml").read_text() == (run / "config.toml").read_text()


def test_a_named_runs_configuration_does_not_write_over_the_run(trained, moebius):
    before = (trained / "runs" / "run" / "metrics.jsonl").read_text()
    refused(moebius("train", trained / "runs" / "run" / "config.toml"), 2, "train.name='run'", "exists; choose another")
    assert (trained / "runs" / "run" / "metrics.jsonl").read_text() == before


def test_generate_continues_the_prompt_and_depends_on_the_seed(trained, moebius):
    run = trained / "runs" / "run"
    first, again, other = (
        moebius("generate", run, "--prompt", "line 3", "--max-tokens", "30", "--seed", seed) for seed in ("5", "5", "6")
    )
    assert first.code == again.code == other.code == 0 and not first.err
    assert first.out.startswith("line 3") and first.out.endswith("\n")
    assert first.out == again.out != other.out
    greedy = [
        moebius("generate", run, "--max-tokens", "8", "--temperature", "0", "--seed", seed, "--device", "cpu").out
        for seed in ("1", "2")
    ]
    assert greedy[0] == greedy[1]


def test_resume_with_more_steps_goes_on(trained, moebius):
    assert moebius("train", "tiny", *micro(trained, train__name="longer")).code == 0
    run = trained / "runs" / "longer"
    result = moebius("resume", run, "--train.steps", "14")
    assert result.code == 0 and f"resuming {run} at step 10 of 14" in result.out
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == [2, 4, 5, 6, 8, 10, 12, 14]
    assert (run / "checkpoints" / "step-00000014").is_dir()


def test_an_alarm_that_stops_a_run_and_the_run_without_it(tmp_path, moebius):
    stop = ["--observe.cv.threshold", "0", "--observe.cv.window=1", "--observe.cv.patience", "0", "--observe.cv.action=stop"]
    result = moebius("train", "tiny", *micro(tmp_path, train__name="run"), *stop, "--observe.tensorboard", "false")
    run = tmp_path / "runs" / "run"
    refused(result, 5, "step 2: alarm: layer ", "stopped as observe.cv.action says", f"`moebius resume {run}`")
    assert "; state saved" in result.out and [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000002"]
    (event,) = (json.loads(line) for line in (run / "events.jsonl").read_text().splitlines())
    assert (event["step"], event["rule"], event["action"], event["done"]) == (2, "cv", "stop", "state saved")
    assert not (run / "tb").exists()
    result = moebius("resume", run, "--observe.cv.action", "off", "--observe.dead-expert.threshold", "0.02")
    assert result.code == 0 and f"resuming {run} at step 2 of 10" in result.out
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [2, 4, 5, 6, 8, 10]


def test_data_is_prepared_ahead_and_then_found(tmp_path, moebius):
    flags = micro(tmp_path)
    first, second = moebius("data", "tiny", *flags), moebius("data", "tiny", *flags)
    assert first.code == second.code == 0
    assert "preparing" in first.out and "preparing" not in second.out
    assert first.out.splitlines()[-2:] == second.out.splitlines()[-2:]
    assert Path(second.out.splitlines()[-1]).is_dir() and not (tmp_path / "runs").exists()


def test_secrets_of_the_environment_are_written_nowhere(trained, monkeypatch, moebius):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    assert moebius("train", "tiny", *micro(trained, train__name="secret", train__steps=1)).code == 0
    files = [path for path in (trained / "runs" / "secret").rglob("*") if path.is_file()]
    assert files and not any(SECRET.encode() in path.read_bytes() for path in files)


# bad input: one line, the right exit code, nothing left behind


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model__dmi": 3}, "--model.dmi: no such field; did you mean --model.dim?"),
        ({"modell__dim": 3}, "--modell.dim: no such field; did you mean --model.dim?"),
        ({"train__steps": "many"}, "train.steps='many': an integer is wanted"),
        ({"train__steps": "1e3"}, "train.steps=1000.0: an integer is wanted"),
        ({"model__router_type": "softmax"}, "did you mean softmax_topk?"),
        ({"model__router_top_k": 4}, "model.router_top_k=4: at most num_experts (3)"),
        ({"model__router_type": "sigmoid"}, "model.base_expansion=0: the sigmoid router may leave a token without any expert"),
        ({"model__num_heads": 4, "model__num_kv_heads": 3}, "model.num_kv_heads=3: must divide num_heads (4)"),
        ({"model__num_heads": 5}, "model.num_heads=5: must divide dim (32)"),
        ({"model__num_experts": "4,4,8"}, "model.num_experts=[4, 4, 8]: 3 numbers for 2 layers"),
        ({"model__vocab_size": 256}, "model.vocab_size=256: the tokenizer has 257 ids; set --model.vocab_size 257"),
        ({"data__vocab_size": 400}, "data.vocab_size=400: at most model.vocab_size (257)"),
        ({"train__name": "../x"}, "train.name='../x': 1 to 64 letters"),
        ({"train__name": "a/b"}, "train.name='a/b'"),
        ({"train__name": "/tmp/x"}, "train.name='/tmp/x'"),
        ({"train__name": ".."}, "train.name='..'"),
        ({"train__name": "."}, "train.name='.'"),
        ({"train__name": " "}, "train.name=' '"),
        ({"train__name": "a\nb"}, "train.name='a\\nb'"),
        ({"train__name": "x" * 65}, "it names a folder inside train.out"),
        ({"train__device": "cuda:99"}, "train.device='cuda:99': this machine has"),
        ({"train__device": "gpu"}, "train.device='gpu'"),
        ({"data__source": ""}, "data.source='': must not be empty"),
        ({"observe__cv__window": 0}, "observe.cv.window=0: must be at least 1"),
        ({"observe__router_logits__action": "revive"}, "observe.router_logits.action='revive': one of off, warn, stop can"),
        ({"observe__dead_expert__actoin": "revive"}, "did you mean --observe.dead_expert.action?"),
    ],
    ids=lambda value: "-".join(f"{name}={text}"[:40] for name, text in value.items()) if isinstance(value, dict) else "",
)
def test_a_configuration_that_cannot_run(changes, said, tmp_path: Path, moebius, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(moebius("train", "tiny", *micro(tmp_path, **changes)), 2, said)
    assert nothing_left(tmp_path)


def nothing_left(folder: Path) -> bool:
    """Neither a run nor half-prepared data."""
    cache = folder / "cache"
    return not (folder / "runs").exists() and not (cache.is_dir() and any(cache.iterdir()))


def test_a_source_that_is_missing_or_empty(tmp_path: Path, moebius):
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.txt").touch()
    (tmp_path / "single.txt").write_text("short")
    for name, said in (
        ("gone.txt", "no such file, folder or glob"),
        ("*.nothing", "no such file, folder or glob"),
        ("folder", "no files in this folder"),
        ("empty.txt", "no text in it"),
        ("single.txt", "one document only"),
    ):
        refused(moebius("train", "tiny", *micro(tmp_path, data__source=tmp_path / name)), 3, str(tmp_path / name), said)
        assert nothing_left(tmp_path)


def test_bytes_that_are_not_utf8(tmp_path: Path, moebius):
    (tmp_path / "texts").mkdir()
    for number in range(6):
        write_text(tmp_path / "texts" / f"{number}.txt", lines=100 + number)
    (tmp_path / "texts" / "3.txt").write_bytes(b"fine so far \xff and on\n" * 20)
    flags = micro(tmp_path, data__source=tmp_path / "texts")
    said = f"{tmp_path / 'texts' / '3.txt'}: byte offset 12 is not UTF-8"
    refused(moebius("train", "tiny", *flags), 3, said, "--data.errors skip")
    assert nothing_left(tmp_path)
    result = moebius("train", "tiny", *flags, "--data.errors", "skip", "--train.steps", "2")
    assert result.code == 0 and "1 documents left out" in result.out
    assert len(list((tmp_path / "runs").iterdir())) == 1


def test_a_corpus_too_small_for_one_batch(tmp_path: Path, moebius):
    result = moebius("train", "tiny", *micro(tmp_path, train__batch_size=5000))
    refused(result, 3, "too few for one batch of 5000 x 32", "lower --train.batch_size or --train.seq_len")
    assert not (tmp_path / "runs").exists()


def test_held_out_text_too_short_to_evaluate(tmp_path: Path, moebius):
    """Found before the first step, not at the first evaluation."""
    (tmp_path / "texts").mkdir()
    write_text(tmp_path / "texts" / "long.txt")
    (tmp_path / "texts" / "short.txt").write_text("a")  # with the end of text two tokens, where MTP looks four ahead
    flags = micro(tmp_path, data__source=tmp_path / "texts", model__use_mtp="true")
    # the document of the lower hash is held out: of these two the short one
    assert document_hash(b"a") < document_hash((tmp_path / "texts" / "long.txt").read_bytes())
    refused(moebius("train", "tiny", *flags, "--data.val_fraction", "0.0001"), 3, "the held-out text has 2 tokens, too few")
    assert not (tmp_path / "runs").exists()


def test_a_tokenizer_with_ids_past_the_vocabulary(trained, tmp_path: Path, moebius):
    own = trained / "runs" / "run" / "tokenizer.json"
    result = moebius("train", "tiny", *micro(tmp_path, data__tokenizer=own, model__vocab_size=200))
    refused(result, 2, "model.vocab_size=200: the tokenizer has 257 ids; set --model.vocab_size 257")
    assert nothing_left(tmp_path)
    (tmp_path / "own.json").write_text("{")
    refused(moebius("train", "tiny", *micro(tmp_path, data__tokenizer=tmp_path / "own.json")), 3, "not a tokenizer.json")


def test_a_run_directory_that_exists(trained, moebius):
    result = moebius("train", "tiny", *micro(trained, train__name="run"))
    refused(result, 2, "train.name='run'", "exists; choose another --train.name, or `moebius resume")


def test_a_run_without_checkpoints(trained, tmp_path: Path, moebius):
    run = tmp_path / "bare"
    run.mkdir()
    for name in ("config.toml", "tokenizer.json"):
        (run / name).write_bytes((trained / "runs" / "run" / name).read_bytes())
    result = moebius("generate", run, "--prompt", "never shown")
    refused(result, 4, f"{run / 'checkpoints'}: no intact checkpoint")
    assert not result.out
    refused(moebius("generate", run, "--device", "gpu"), 2, "device='gpu': auto, cpu, cuda or cuda:N")
    resumed = moebius("resume", run)  # killed before its first checkpoint: it begins
    assert resumed.code == 0 and f"resuming {run} at step 0 of 10" in resumed.out
    assert losses(run) == losses(trained / "runs" / "run")


def test_a_run_whose_checkpoints_are_all_damaged(trained, tmp_path: Path, moebius):
    run = tmp_path / "damaged"
    shutil.copytree(trained / "runs" / "run", run)
    for model in run.glob("checkpoints/*/model.safetensors"):
        model.write_bytes(b"no")
    result = moebius("resume", run)
    assert result.out.count("passed over") == 3
    refused(result, 4, f"{run / 'checkpoints'}: no intact checkpoint")


def test_a_resumed_run_keeps_its_model_and_data(trained, moebius):
    run = trained / "runs" / "run"
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    refused(moebius("resume", run, "--model.dim", "64"), 2, "--model.dim: a resumed run keeps its model")
    refused(moebius("resume", run, "--data.source", "x"), 2, "--data.source: a resumed run keeps its data")
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_a_damaged_checkpoint_is_passed_over_aloud_and_apart_from_the_text(trained, tmp_path: Path, moebius):
    run = tmp_path / "damaged"
    shutil.copytree(trained / "runs" / "run", run)
    (run / "checkpoints" / "step-00000010" / "model.safetensors").write_bytes(b"no")
    result = moebius("generate", run, "--prompt", "line", "--max-tokens", "3")
    assert result.code == 0 and result.out.startswith("line")
    refused(result._replace(code=4), 4, "passed over", "step-00000010")


def test_places_that_cannot_be_written(tmp_path: Path, moebius):
    (tmp_path / "file").touch()
    refused(
        moebius("train", "tiny", *micro(tmp_path, data__cache=tmp_path / "file")), 6, str(tmp_path / "file"), "--data.cache"
    )
    refused(moebius("train", "tiny", *micro(tmp_path, train__out=tmp_path / "file")), 6, str(tmp_path / "file"), "--train.out")
    assert (tmp_path / "file").read_bytes() == b"" and not (tmp_path / "runs").exists()


def test_debug_shows_the_traceback():
    with pytest.raises(Exception, match="preset 'tiyn'"):
        cli.main(["train", "tiyn", "--debug"])
    done = subprocess.run(
        [sys.executable, "-m", "moebius", "--debug", "train", "tiyn"], capture_output=True, text=True, check=False
    )
    assert "Traceback" in done.stderr and done.returncode
    done = subprocess.run([sys.executable, "-m", "moebius", "train", "tiyn"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and not done.stdout


def test_a_full_gpu_is_one_line(monkeypatch, moebius):
    def too_much(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nGPU 0 has a total capacity of ...")

    monkeypatch.setattr("moebius.profile.profile.profile", too_much)
    refused(moebius("profile", "tiny"), 2, "memory is full", "--train.micro_batch_size")


def test_a_mistake_of_ours_is_not_made_into_a_line(monkeypatch, moebius):
    def wrong(*_: object) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr("moebius.profile.profile.profile", wrong)
    with pytest.raises(RuntimeError, match="shapes"):
        moebius("profile", "tiny")
