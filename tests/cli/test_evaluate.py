"""Tests of `moebius evaluate`, on a run of ten steps."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from moebius.infer.expert_use import TOP_TOKENS
from moebius.train.run_directory import RunDirectory
from tests.cli.command_line import metrics, micro, refused, write_text


@pytest.fixture
def run(trained, tmp_path: Path) -> Path:
    """A copy of the trained run."""
    return Path(shutil.copytree(trained / "runs" / "run", tmp_path / "copy"))


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory) -> Path:
    """An export of the trained run."""
    pytest.importorskip("transformers")
    from moebius.infer.export import ExportOptions, export

    place = tmp_path_factory.mktemp("exported") / "model"
    ignore: Any = lambda line: None  # noqa: E731
    export(RunDirectory.open(str(trained / "runs" / "run")), "hf", place, ExportOptions(), ignore)
    return place


def result_of(run: Path, name: str = "step-00000010") -> dict[str, Any]:
    return json.loads((run / "evaluations" / f"{name}.json").read_text())


def test_the_loss_is_that_of_training_and_is_written_down(run, moebius):
    result = moebius("evaluate", run)
    assert result.code == 0 and not result.err
    values, last = result_of(run), metrics(run)[-1]
    total = values["text"]["total"]
    assert total["loss"]["value"] == pytest.approx(last["val_loss"], rel=1e-12)
    assert total["bits_per_byte"]["value"] == pytest.approx(last["val_bpb"], rel=1e-12)
    assert total["loss"]["low"] < total["loss"]["value"] < total["loss"]["high"]
    assert f"{last['val_loss']:.4f} ({total['loss']['low']:.4f} to " in result.out
    assert str(run / "evaluations" / "step-00000010.json") in result.out
    assert (values["version"], values["step"], values["seq_len"]) == (1, 10, 32)
    assert values["text"]["is_own"] and values["dtype"] == "float32"
    layers = values["experts"]
    assert [layer["layer"] for layer in layers] == [0, 1]
    for layer in layers:
        (routing,) = layer["sources"].values()
        assert sum(routing["tokens_per_expert"]) == total["tokens"]
        assert len(layer["top_tokens"]) == 3
        for tokens in layer["top_tokens"]:
            assert 1 <= len(tokens) <= TOP_TOKENS
            assert all(set(token) == {"id", "text", "count", "share"} for token in tokens)
    listed = moebius("evaluate", run, "--json")
    assert json.loads(listed.out) == values and listed.out.count("\n") == 1


def test_an_earlier_step_and_another_number_of_tokens(run, moebius):
    assert moebius("evaluate", run, "--step", "8", "--tokens", "100").code == 0
    assert result_of(run, "step-00000008")["text"]["total"]["tokens"] == 96
    assert moebius("evaluate", run, "--tokens", str(10**9)).code == 0
    assert result_of(run)["text"]["total"]["tokens"] > 1000
    refused(moebius("evaluate", run, "--step", "7"), 4, "no checkpoint of step 7")
    # Going back to an earlier step makes other checkpoints of the later ones.
    assert moebius("resume", run, "--step", "8").code == 0
    (aside,) = run.glob("aside-*")
    assert [file.name for file in (aside / "evaluations").iterdir()] == ["step-00000010.json"]
    assert [file.name for file in (run / "evaluations").iterdir()] == ["step-00000008.json"]


@pytest.mark.parametrize(
    "changes",
    [
        {"router_type": "switch", "capacity_factor": 0.7, "base_expansion": 1.0},
        {"use_mtp": "true", "router_type": "sigmoid", "base_expansion": 1.0},
    ],
)
def test_the_loss_of_other_models_is_that_of_training_too(changes, tmp_path, moebius):
    sources = [write_text(tmp_path / name, lines) for name, lines in (("a", 700), ("b", 400))]
    flags = micro(
        tmp_path,
        data__source=",".join(map(str, sources)),
        data__weights="[3,1]",
        train__name="run",
        train__steps=2,
        train__batch_size=4,
        train__micro_batch_size=2,
        train__eval_tokens=900,
        **{f"model__{name}": value for name, value in changes.items()},
    )
    run = tmp_path / "runs" / "run"
    assert moebius("train", "tiny", *flags).code == 0
    result = moebius("evaluate", run, "--json")
    assert result.code == 0
    text, last = json.loads(result.out)["text"], metrics(run)[-1]
    assert text["total"]["loss"]["value"] == pytest.approx(last["val_loss"], rel=1e-12)
    assert list(text["sources"]) == list(last["val_by_source"]) == list(map(str, sources))
    for name, figures in last["val_by_source"].items():
        own = text["sources"][name]
        assert own["loss"]["value"] == pytest.approx(figures["loss"], rel=1e-12)
        assert (own["share"], own["tokens"]) == (figures["share"], figures["tokens"])
    table = moebius("evaluate", run).out
    assert "all, by weight" in table and "one document" not in table


def test_another_text_counts_as_a_whole_and_the_runs_own_as_held_out(
    trained, run, tmp_path, moebius
):
    other = write_text(tmp_path / "other.jsonl", 0)
    other.write_text("".join(json.dumps({"text": f"ab{n}"}) + "\n" for n in range(50)))
    result = moebius("evaluate", run, "--source", other, "--json", "--tokens", "10000")
    values = json.loads(result.out)
    assert result.code == 0 and not values["text"]["is_own"]
    total = values["text"]["total"]
    assert (total["documents"], total["bytes"]) == (50, sum(len(f"ab{n}") for n in range(50)))
    (file,) = (run / "evaluations").iterdir()
    assert file.name.startswith("step-00000010-") and "other.jsonl" in file.name
    own = trained / "text.txt"
    again = moebius("evaluate", run, "--source", own, "--json")
    assert "only what it holds out is evaluated" in again.err
    assert moebius("evaluate", run).code == 0
    assert json.loads(again.out)["text"]["total"] == result_of(run)["text"]["total"]


def test_the_runs_own_text_is_recognized_however_it_is_spelled(trained, run, tmp_path, moebius):
    assert moebius("evaluate", run).code == 0
    total = result_of(run)["text"]["total"]
    (tmp_path / "link.txt").symlink_to(trained / "text.txt")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "text.txt").symlink_to(trained / "text.txt")
    spellings = (
        f"{trained}/../{trained.name}/text.txt",
        f"{trained}/tex*.txt",
        tmp_path / "link.txt",
        folder,
    )
    for spelling in spellings:
        result = moebius("evaluate", run, "--source", spelling, "--json")
        assert result.code == 0, result
        assert f"{spelling}: the run is trained on it" in result.err
        assert json.loads(result.out)["text"]["total"] == total


def test_a_text_that_shares_files_with_the_runs_own_is_announced(trained, run, tmp_path, moebius):
    folder = tmp_path / "folder"
    folder.mkdir()
    write_text(folder / "other.txt", 50)
    (folder / "same.txt").symlink_to(trained / "text.txt")
    result = moebius("evaluate", run, "--source", folder, "--json")
    assert "1 of its 2 files belong to the text that the run is trained on" in result.err
    assert json.loads(result.out)["text"]["total"]["documents"] == 2


def test_an_export_has_the_loss_of_its_run(exported, run, tmp_path, monkeypatch, moebius):
    monkeypatch.setenv("HOME", str(tmp_path))  # the cache of a model without settings is in it
    other = write_text(tmp_path / "other.txt", 300)
    words = ("--source", other, "--json", "--tokens", "2000")
    of_run, of_export = (
        json.loads(moebius("evaluate", place, *words).out) for place in (run, exported)
    )
    assert of_export["step"] is None and of_export["model"] == "model"
    for figures in (of_run, of_export):
        assert figures["text"]["total"]["tokens"] > 1000
    assert of_export["text"]["total"]["loss"] == pytest.approx(of_run["text"]["total"]["loss"])
    counts = [
        [layer["sources"][str(other)]["tokens_per_expert"] for layer in figures["experts"]]
        for figures in (of_run, of_export)
    ]
    assert counts[0] == counts[1]
    assert list((exported / "evaluations").glob("model-*other.txt-*.json"))
    refused(moebius("evaluate", exported), 2, "no text of its own; name one with --source")
    refused(moebius("evaluate", exported, "--step", "3"), 2, "--step 3", "exported model")


def test_damaged_exports(exported, tmp_path, moebius):
    copy = Path(shutil.copytree(exported, tmp_path / "copy"))
    (copy / "tokenizer.json").unlink()
    refused(moebius("evaluate", copy, "--source", "x"), 3, "tokenizer.json: no such tokenizer")
    (copy / "model.safetensors").write_bytes(b"no")
    refused(moebius("evaluate", copy, "--source", "x"), 4, "model.safetensors: cannot be read")
    (copy / "config.json").write_text("{}")
    refused(moebius("evaluate", copy, "--source", "x"), 4, "config.json: model_type is missing")


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["gone"], "gone: there is no such directory"),
        ([], "RUN is missing"),
        (["x", "--tokens", "-1"], "--tokens -1: must be at least 0"),
        (["x", "--tokens", "0"], "--tokens 0: leaves nothing to evaluate without --tasks"),
        (["x", "--tokens", "0", "--tasks", "a", "--source", "b"], "--tokens 0: leaves out"),
        (["x", "--tasks", "a,,b"], "--tasks 'a,,b': a name is empty"),
        (["x", "--limit", "3"], "--limit 3: is about tasks"),
        (["x", "--limit", "0", "--tasks", "a"], "--limit 0: must be at least 1"),
        (["x", "--num-fewshot", "-1", "--tasks", "a"], "--num-fewshot -1: must be at least 0"),
    ],
)
def test_words_that_are_not_understood(words, part, moebius):
    refused(moebius("evaluate", *words), 2, part)


def test_what_is_missing_or_damaged_is_one_line(run, tmp_path, monkeypatch, moebius):
    refused(moebius("evaluate", tmp_path), 2, "not a run directory")
    refused(moebius("evaluate", run, "--device", "gpu"), 2, "--device 'gpu': must be")
    gone = tmp_path / "gone.txt"
    refused(moebius("evaluate", run, "--source", gone), 3, f"--source {str(gone)!r}: no such file")
    empty = tmp_path / "empty.txt"
    empty.touch()
    refused(moebius("evaluate", run, "--source", empty), 3, "no text in it")
    refused(moebius("evaluate", run, "--source", "a,a"), 2, "--source 'a,a': a source is empty")
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    refused(moebius("evaluate", run, "--tasks", "arc_easy"), 2, "pip install 'moebius[eval]'")
    assert not (run / "evaluations").exists()  # what is refused leaves nothing behind
    (run / "evaluations").touch()
    refused(moebius("evaluate", run), 6, "evaluations: File exists")
    newest = run / "checkpoints" / "step-00000010" / "model.safetensors"
    newest.write_bytes(b"no")
    refused(moebius("evaluate", run, "--step", "10"), 4, "2 bytes, but")
    (run / "evaluations").unlink()
    result = moebius("evaluate", run)
    assert result.code == 0 and "passed over" in result.err
    assert (run / "evaluations" / "step-00000008.json").exists()
    (run / "run.json").rename(run / "run.json.old")
    assert moebius("evaluate", run).err.count("run.json: missing") == 1
    (run / "run.json.old").rename(run / "run.json")
    shutil.rmtree(run / "checkpoints")
    refused(moebius("evaluate", run), 4, "no checkpoint yet")


def test_text_that_is_damaged_or_was_not_kept(tmp_path, moebius):
    flags = micro(tmp_path, train__name="run", train__steps=2)
    assert moebius("train", "tiny", *flags).code == 0
    run = tmp_path / "runs" / "run"
    (shard,) = (tmp_path / "cache").glob("*/val*.bin")
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    refused(moebius("evaluate", run), 3, "damaged", str(shard))
    # It is prepared again, as long as the source is the same.
    shutil.rmtree(tmp_path / "cache")
    assert moebius("evaluate", run).code == 0
    assert result_of(run, "step-00000002")["text"]["total"]["loss"]["value"] == pytest.approx(
        metrics(run)[-1]["val_loss"], rel=1e-12
    )
    shutil.rmtree(tmp_path / "cache")
    write_text(tmp_path / "text.txt", 300)
    result = moebius("evaluate", run)
    assert result.code == 4 and "trained on another text" in result.err
