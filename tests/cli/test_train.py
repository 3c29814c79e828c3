"""Tests of `moebius train`: what it prints, what it leaves on disk, and what it refuses.

Bad input gets one line and the right exit code, and leaves nothing behind.
"""

import re
from pathlib import Path

import pytest

from moebius.data.held_out import document_hash
from moebius.observe.metrics import StepMetrics
from tests.cli.command_line import losses, metrics, micro, refused, steps, write_text

SECRET = "correct horse battery staple"


def test_training_writes_the_run_directory(trained):
    run = trained / "runs" / "run"
    assert {path.name for path in run.iterdir()} == {
        "config.toml", "run.json", "tokenizer.json",
        "metrics.jsonl", "events.jsonl", "tb", "checkpoints",
        "environment.jsonl", "samples.jsonl", "report.html",
    }  # fmt: skip
    assert [path.name for path in sorted((run / "checkpoints").iterdir())] == [
        f"step-{step:08d}" for step in (4, 8, 10)
    ]
    assert steps(run) == [2, 4, 5, 6, 8, 10]
    for line in metrics(run):
        for name in (
            "loss",
            "lr",
            "grad_norm",
            "tokens_per_second",
            "mfu",
            "memory_gb",
            "balance_loss",
        ):
            assert isinstance(line[name], float), name
        assert line["tokens"] == line["step"] * 2 * 32
        step = StepMetrics.from_json(line)
        assert len(step.layers) == 2 and step.to_json() == line
        assert [sum(counts) for counts in line["tokens_per_expert"]] == [64, 64]
        assert ("val_loss" in line) == ("val_bpb" in line) == (line["step"] in (5, 10))


def test_training_tells_what_it_does(trained, moebius):
    result = moebius("train", "tiny", *micro(trained, train__name="told"))
    assert result.code == 0 and not result.err
    run = trained / "runs" / "told"
    for part in (
        "parameters",
        "FLOPs per token",
        "memory",
        "softmax_topk top-1; number x width by layer: 3x64 (2 layers)",
    ):
        assert part in result.out
    for part in (
        "step 10/10  loss ",
        "validation loss ",
        " bits per byte",
        "a sample:",
        f"run directory: {run}",
        f"moebius generate {run} --prompt ",
    ):
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
    refused(
        moebius("train", trained / "runs" / "run" / "config.toml"),
        2,
        "train.name='run'",
        "exists; choose another",
    )
    assert (trained / "runs" / "run" / "metrics.jsonl").read_text() == before


def test_secrets_of_the_environment_are_written_nowhere(trained, monkeypatch, moebius):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    assert (
        moebius("train", "tiny", *micro(trained, train__name="secret", train__steps=1)).code == 0
    )
    files = [path for path in (trained / "runs" / "secret").rglob("*") if path.is_file()]
    assert files and not any(SECRET.encode() in path.read_bytes() for path in files)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["tiyn"], "preset 'tiyn': "),
        (["gone.toml"], "gone.toml: No such file or directory"),
        (["tiny", "--lr", "1e-3"], "did you mean --train.lr"),
        (["tiny", "--train.lr"], "--train.lr: a value is missing"),
    ],
)
def test_words_that_are_not_understood(words, part, moebius):
    refused(moebius("train", *words), 2, part)


def test_processes_that_torchrun_did_not_start_are_refused(monkeypatch, tmp_path, moebius):
    """Nothing is done before."""
    monkeypatch.setenv("RANK", "0")  # torchrun also says where the processes meet
    monkeypatch.setenv("WORLD_SIZE", "4")
    refused(moebius("train", "tiny", *micro(tmp_path)), 2, "start with torchrun")
    assert nothing_left(tmp_path)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"model__dmi": 3}, "--model.dmi: no such setting; did you mean --model.dim?"),
        ({"modell__dim": 3}, "--modell.dim: no such setting; did you mean --model.dim?"),
        ({"train__steps": "many"}, "train.steps='many': must be an integer"),
        ({"train__steps": "1.5e0"}, "train.steps=1.5: must be an integer"),
        ({"model__router_type": "softmax"}, "did you mean softmax_topk?"),
        ({"model__router_top_k": 4}, "model.router_top_k=4: must be at most num_experts (3)"),
        (
            {"model__router_type": "sigmoid"},
            "model.base_expansion=0: the sigmoid router may leave a token without any expert",
        ),
        (
            {"model__num_heads": 4, "model__num_kv_heads": 3},
            "model.num_kv_heads=3: must divide num_heads (4)",
        ),
        ({"model__num_heads": 5}, "model.num_heads=5: must divide dim (32)"),
        (
            {"model__num_experts": "4,4,8"},
            "model.num_experts=[4, 4, 8]: must be one number, or one for each of the 2 layers",
        ),
        (
            {"model__vocab_size": 256},
            "model.vocab_size=256: the tokenizer has 257 ids; set --model.vocab_size 257",
        ),
        ({"data__vocab_size": 400}, "data.vocab_size=400: must be at most model.vocab_size (257)"),
        ({"train__name": "../x"}, "train.name='../x': must be 1 to 64 letters"),
        ({"train__name": "a/b"}, "train.name='a/b'"),
        ({"train__name": "/tmp/x"}, "train.name='/tmp/x'"),
        ({"train__name": ".."}, "train.name='..'"),
        ({"train__name": "."}, "train.name='.'"),
        ({"train__name": " "}, "train.name=' '"),
        ({"train__name": "a\nb"}, "train.name='a\\nb'"),
        ({"train__name": "x" * 65}, "it names a folder inside train.out"),
        ({"train__device": "cuda:99"}, "train.device='cuda:99': this machine has"),
        ({"train__device": "gpu"}, "train.device='gpu'"),
        ({"data__source": ""}, "data.source='': must be non-empty"),
        ({"observe__cv__window": 0}, "observe.cv.window=0: must be at least 1"),
        (
            {"observe__router_logits__action": "revive"},
            "observe.router_logits.action='revive': this alarm's action must be one of",
        ),
        ({"observe__dead_expert__actoin": "revive"}, "did you mean --observe.dead_expert.action?"),
    ],
    ids=lambda value: (
        "-".join(f"{name}={text}"[:40] for name, text in value.items())
        if isinstance(value, dict)
        else ""
    ),
)
def test_a_configuration_that_cannot_run(changes, part, tmp_path: Path, moebius, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(moebius("train", "tiny", *micro(tmp_path, **changes)), 2, part)
    assert nothing_left(tmp_path)


def nothing_left(folder: Path) -> bool:
    """Return whether there is neither a run nor half-prepared data."""
    cache = folder / "cache"
    return not (folder / "runs").exists() and not (cache.is_dir() and any(cache.iterdir()))


def test_a_source_that_is_missing_or_empty(tmp_path: Path, moebius):
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.txt").touch()
    (tmp_path / "single.txt").write_text("short")
    for name, part in (
        ("gone.txt", "no such file, folder or glob"),
        ("*.nothing", "no such file, folder or glob"),
        ("folder", "no files in this folder"),
        ("empty.txt", "no text in it"),
        ("single.txt", "one document only"),
    ):
        refused(
            moebius("train", "tiny", *micro(tmp_path, data__source=tmp_path / name)),
            3,
            str(tmp_path / name),
            part,
        )
        assert nothing_left(tmp_path)


def test_bytes_that_are_not_utf8(tmp_path: Path, moebius):
    (tmp_path / "texts").mkdir()
    for number in range(6):
        write_text(tmp_path / "texts" / f"{number}.txt", lines=100 + number)
    (tmp_path / "texts" / "3.txt").write_bytes(b"fine so far \xff and on\n" * 20)
    flags = micro(tmp_path, data__source=tmp_path / "texts")
    place = f"{tmp_path / 'texts' / '3.txt'}: byte offset 12 is not UTF-8"
    refused(moebius("train", "tiny", *flags), 3, place, "--data.errors skip")
    assert nothing_left(tmp_path)
    skipping = micro(
        tmp_path, data__source=tmp_path / "texts", data__errors="skip", train__steps=2
    )
    result = moebius("train", "tiny", *skipping)
    assert result.code == 0 and "1 document left out" in result.out
    assert len(list((tmp_path / "runs").iterdir())) == 1


def test_a_corpus_too_small_for_one_batch(tmp_path: Path, moebius):
    result = moebius("train", "tiny", *micro(tmp_path, train__batch_size=5000))
    refused(
        result,
        3,
        "too few for one batch of 5000 x 32",
        "lower --train.batch_size or --train.seq_len",
    )
    assert not (tmp_path / "runs").exists()


def test_held_out_text_too_short_to_evaluate(tmp_path: Path, moebius):
    """The run is refused before the first step, not at the first evaluation."""
    (tmp_path / "texts").mkdir()
    write_text(tmp_path / "texts" / "long.txt")
    (tmp_path / "texts" / "short.txt").write_text(
        "a"  # two tokens, including the end of text, but MTP looks four tokens ahead
    )
    changes = {"data__source": tmp_path / "texts", "model__use_mtp": "true"}
    flags = micro(tmp_path, **changes, data__val_fraction=0.0001)
    # of these two documents the short one is held out, because its hash is lower
    long_text = (tmp_path / "texts" / "long.txt").read_text()
    assert document_hash("a") < document_hash(long_text)
    refused(
        moebius("train", "tiny", *flags),
        3,
        "the held-out text has 2 tokens, too few",
    )
    assert not (tmp_path / "runs").exists()


def test_a_tokenizer_with_ids_past_the_vocabulary(trained, tmp_path: Path, moebius):
    tokenizer = trained / "runs" / "run" / "tokenizer.json"
    flags = micro(tmp_path, data__tokenizer=tokenizer, model__vocab_size=200)
    result = moebius("train", "tiny", *flags)
    refused(
        result, 2, "model.vocab_size=200: the tokenizer has 257 ids; set --model.vocab_size 257"
    )
    assert nothing_left(tmp_path)
    (tmp_path / "own.json").write_text("{")
    refused(
        moebius("train", "tiny", *micro(tmp_path, data__tokenizer=tmp_path / "own.json")),
        3,
        "not a tokenizer.json",
    )


def test_a_run_directory_that_exists(trained, moebius):
    result = moebius("train", "tiny", *micro(trained, train__name="run"))
    refused(
        result, 2, "train.name='run'", "exists; choose another --train.name, or `moebius resume"
    )


def test_places_that_cannot_be_written(tmp_path: Path, moebius):
    (tmp_path / "file").touch()
    refused(
        moebius("train", "tiny", *micro(tmp_path, data__cache=tmp_path / "file")),
        6,
        str(tmp_path / "file"),
        "--data.cache",
    )
    refused(
        moebius("train", "tiny", *micro(tmp_path, train__out=tmp_path / "file")),
        6,
        str(tmp_path / "file"),
        "--train.out",
    )
    assert (tmp_path / "file").read_bytes() == b"" and not (tmp_path / "runs").exists()


PHASES = """
[[train.phases]]
until = 200
schedule = "linear"
[[train.phases]]
until = 400
batch_size = 4
lr_fraction = 0.1
schedule = "linear"
"""


def phased(folder: Path, phases: str, *more: str) -> list[str]:
    """Return the words that train a small run in these phases."""
    flags = micro(folder, train__name="phased")
    pairs = zip(flags[::2], flags[1::2], strict=True)
    left_out = ("--train.steps", "--train.warmup_steps")
    own = [word for pair in pairs if pair[0] not in left_out for word in pair]
    (folder / "phases.toml").write_text('base = "tiny"\n' + phases)
    return ["train", str(folder / "phases.toml"), *own, *more]


def test_a_run_in_phases_and_what_it_says_when_it_is_finished(tmp_path, moebius):
    result = moebius(*phased(tmp_path, PHASES))
    assert result.code == 0, result.err
    assert "2 phases, 6 steps, 400 tokens" in result.out
    run = tmp_path / "runs" / "phased"
    assert [line["tokens"] for line in metrics(run)] == [128, 256, 384, 512]
    result = moebius("resume", run)
    assert result.code == 0 and "is finished: it is at step 6 of 6; a further phase" in result.out
    config = (run / "config.toml").read_text()
    (run / "config.toml").write_text(config + "[[train.phases]]\nuntil = 600\n")
    assert moebius("resume", run).code == 0
    assert [line["tokens"] for line in metrics(run)][-1] == 640


@pytest.mark.parametrize(
    ("phases", "more", "part"),
    [
        (PHASES.replace("400", "200"), (), "phases[2].until=200: ends before it begins"),
        (PHASES, ("--train.steps", "9"), "train.steps=9: follows from train.phases"),
        (PHASES.replace("until = 400", ""), (), "phases[2]: until is missing"),
        (PHASES.replace("linear", "liner"), (), "schedule='liner': must be one of"),
        (PHASES + "weights = [1, 2]\n", (), "must be one number for each of the 1 sources"),
    ],
)
def test_phases_that_are_refused(tmp_path, moebius, phases, more, part):
    refused(moebius(*phased(tmp_path, phases, *more)), 2, part)
    assert not (tmp_path / "runs").exists()
