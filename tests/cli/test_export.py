"""Tests of `moebius export` and `moebius import`, on a run of ten steps."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from moebius.errors import NumericError
from moebius.infer import export as module
from moebius.infer.language_model import load_run
from moebius.observe.line_file import read_lines
from moebius.train.origin import Origin
from moebius.train.run_directory import RunDirectory
from tests.cli.command_line import Result, micro, refused

CPU = torch.device("cpu")


def silent(line: str) -> None:
    """Ignore a line."""


@pytest.fixture(scope="session")
def exported(trained, tmp_path_factory) -> Path:
    """The folder of an export of the trained run. Tests leave it as it is."""
    place = tmp_path_factory.mktemp("exported") / "model"
    run = RunDirectory(trained / "runs" / "run")
    options = module.ExportOptions(license="apache-2.0")
    module.export(run, "hf", place, options, silent, silent)
    return place


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A copy of the trained run."""
    return Path(shutil.copytree(trained / "runs" / "run", tmp_path / "run"))


@pytest.fixture
def copy(exported, tmp_path) -> Path:
    """A copy of the export."""
    return Path(shutil.copytree(exported, tmp_path / "copy"))


def damage(folder: Path) -> None:
    """Change a byte in the weights of a checkpoint."""
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))


def test_stock_transformers_computes_the_logits_of_the_run(trained, exported):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    language_model = load_run(RunDirectory(trained / "runs" / "run"), CPU, silent)
    ours, tokenizer = language_model.model, language_model.tokenizer
    theirs = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32)
    ids = AutoTokenizer.from_pretrained(exported)("line 7: 49", return_tensors="pt")["input_ids"]
    assert ids[0].tolist() == [tokenizer.end_of_text, *tokenizer.encode("line 7: 49")]
    with torch.no_grad():
        expected, logits = ours(ids).logits_BSV, theirs(ids).logits
    assert (expected - logits).abs().max() <= 1e-5 * expected.abs().max()
    settings = theirs.generation_config
    assert (settings.do_sample, settings.temperature, settings.top_k) == (True, 0.8, 0)
    end = tokenizer.end_of_text
    assert settings.bos_token_id == settings.eos_token_id == settings.pad_token_id == end


def test_the_files_of_an_export(exported):
    names = {path.name for path in exported.iterdir()}
    assert names == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert not [path for path in exported.parent.iterdir() if path != exported]
    assert len({path.stat().st_mode for path in exported.iterdir()}) == 1


def test_the_card_says_what_the_model_is(exported):
    card = (exported / "README.md").read_text()
    assert 'license: "apache-2.0"' in card and "AutoModelForCausalLM.from_pretrained" in card
    assert "| step | 10 |" in card and "bits per byte at step 10" in card
    assert "random tokens: " in card and "held-out text: " in card
    assert "| 10 | 640 |" in card  # the table of losses ends with the last step


def test_what_is_printed(run, tmp_path, moebius):
    result = moebius("export", run, tmp_path / "out", "--to", "hf", "--dtype", "bfloat16")
    assert result.code == 0 and not result.err
    for text in ("Qwen2MoeForCausalLM, from step 10", "bfloat16", "largest difference", "random"):
        assert text in result.out
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert "rounded to bfloat16" in (tmp_path / "out" / "README.md").read_text()


def test_an_older_step_and_the_mean_of_steps(run, tmp_path, moebius):
    assert moebius("export", run, tmp_path / "a", "--step", "4").code == 0
    assert moebius("export", run, tmp_path / "b", "--step", "8").code == 0
    result = moebius("export", run, tmp_path / "m", "--step", "8", "--average", "last:2")
    assert "the mean of steps 8, 4" in result.out
    a, b, mean = (load_file(tmp_path / name / "model.safetensors") for name in "abm")
    name = "model.layers.1.self_attn.o_proj.weight"
    assert torch.allclose(mean[name], (a[name] + b[name]) / 2, atol=1e-7)
    assert not torch.equal(a[name], b[name])


def test_large_models_are_split(run, tmp_path, monkeypatch, moebius):
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr(module, "write_tensors", lambda f, t: write(f, t, largest_file=50_000))
    write = sys.modules["moebius.infer.stock_files"].write_tensors
    assert moebius("export", run, tmp_path / "out").code == 0
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(files)
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_options_that_make_no_sense(run, tmp_path, moebius):
    out = tmp_path / "out"
    refused(moebius("export", run, out, "--to", "gguf"), 2, "--to gguf: must be one of hf")
    refused(moebius("export", run, out, "--dtype", "float64"), 2, "--dtype float64")
    refused(moebius("export", run, out, "--drop", "experts"), 2, "--drop experts")
    refused(moebius("export", run, out, "--average", "5"), 2, "must be last:N")
    refused(moebius("export", run, out, "--average", "last:9"), 4, "3 checkpoints", "mean of 9")
    refused(moebius("export", run, out, "--step", "5"), 4, "no checkpoint of step 5")
    refused(moebius("export", tmp_path, out), 2, "not a run directory")
    refused(moebius("export", run), 2, "DIR is missing")
    assert not out.exists()


def test_folders_that_cannot_be_written(run, tmp_path, moebius):
    (tmp_path / "there").mkdir()
    refused(moebius("export", run, tmp_path / "there"), 6, "there: exists")
    (tmp_path / "file").write_text("")
    refused(moebius("export", run, tmp_path / "file" / "out"), 6, "file")
    refused(moebius("export", run, tmp_path / "a\0b"), 6, "null byte; choose another")
    for place in ("/", ".", "", ".."):
        refused(moebius("export", run, place), 6, "exists; choose a folder")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_failed_export_leaves_no_folder_above_it(run, tmp_path, monkeypatch, moebius):
    def broken(*_):
        raise NumericError("made to fail")

    monkeypatch.setattr(module, "_verify", broken)
    (tmp_path / "old").mkdir()
    refused(moebius("export", run, tmp_path / "old" / "new" / "out"), 5, "made to fail")
    assert not [*(tmp_path / "old").iterdir()]


def test_what_transformers_cannot_load_is_one_line(run, tmp_path, monkeypatch, moebius):
    """Model classes raise errors of any kind for settings that they do not expect."""
    honest = module.config_json

    def without_heads(*arguments):
        return honest(*arguments) | {"num_attention_heads": 0}

    monkeypatch.setattr(module, "config_json", without_heads)
    refused(moebius("export", run, tmp_path / "out"), 5, "transformers 5", "cannot load the model")
    assert not (tmp_path / "out").exists()


def test_runs_without_a_good_checkpoint(run, tmp_path, moebius):
    out, checkpoints = tmp_path / "out", run / "checkpoints"
    damage(checkpoints / "step-00000010")
    refused(moebius("export", run, out, "--step", "10"), 4, "SHA-256 differs")
    refused(moebius("export", run, out, "--average", "last:2"), 4, "no such mean")
    result = moebius("export", run, out)
    assert result.code == 0 and "from step 8" in result.out and "passed over" in result.err
    shutil.rmtree(checkpoints)
    refused(moebius("export", run, tmp_path / "other"), 4, "no checkpoint yet")
    assert not (tmp_path / "other").exists()


def test_without_transformers(run, tmp_path, monkeypatch, moebius):
    monkeypatch.setitem(sys.modules, "transformers", None)
    result = moebius("export", run, tmp_path / "out")
    refused(result, 2, "transformers, which is not installed", "moebius[transformers]")


def test_an_export_that_computes_something_else_does_not_stay(run, tmp_path, monkeypatch, moebius):
    right = module.config_json

    def wrong(*arguments):
        return right(*arguments) | {"rms_norm_eps": 1e-2}

    monkeypatch.setattr(module, "config_json", wrong)
    result = moebius("export", run, tmp_path / "out")
    refused(result, 5, "logits differ by", "nothing was exported")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_multi_token_prediction_is_left_out_on_request_only(tmp_path, moebius):
    flags = micro(tmp_path, train__name="mtp", train__steps=2, model__use_mtp="true")
    assert moebius("train", "tiny", *flags).code == 0
    run, out = tmp_path / "runs" / "mtp", tmp_path / "out"
    refused(moebius("export", run, out), 2, "model.use_mtp=true", "--drop mtp")
    assert moebius("export", run, out, "--drop", "mtp").code == 0
    assert "was left out" in (out / "README.md").read_text()


def test_a_model_that_no_architecture_holds(run, tmp_path, moebius):
    config = (run / "config.toml").read_text()
    (run / "config.toml").write_text(config.replace('"swiglu"', '"gelu"'))
    refused(moebius("export", run, tmp_path / "out"), 2, "cannot be exported to hf", "gelu")


def imported(moebius, folder: Path, tmp_path: Path, *more: str) -> Result:
    """Import a folder as a run on the text of the trained run."""
    kept = ("--data.source", "--data.val_fraction", "--data.cache", "--train.")
    flags = micro(tmp_path, train__name="imported")
    pairs = zip(flags[::2], flags[1::2], strict=True)
    settings = [word for pair in pairs if pair[0].startswith(kept) for word in pair]
    return moebius("import", folder, *settings, *more)


def test_an_import_is_a_run_with_the_same_logits(trained, exported, tmp_path, moebius):
    result = imported(moebius, exported, tmp_path)
    assert result.code == 0, result.err
    assert "largest difference of logits" in result.out
    run = tmp_path / "runs" / "imported"
    language_model = load_run(RunDirectory(run), CPU, silent)
    ours, tokenizer = language_model.model, language_model.tokenizer
    original = load_run(RunDirectory(trained / "runs" / "run"), CPU, silent).model
    ids = torch.tensor([[tokenizer.end_of_text, *tokenizer.encode("line 7: 49")]])
    with torch.no_grad():
        logits, expected = ours(ids).logits_BSV, original(ids).logits_BSV
    assert (expected - logits).abs().max() <= 1e-5 * expected.abs().max()
    config = RunDirectory(run).config()
    assert config.model == original.config and config.train.seq_len == 32
    (event,) = read_lines(run / "events.jsonl")
    assert event["event"] == "imported" and event["origin"] == {"path": str(exported), "step": 0}
    result = moebius("resume", run)
    assert result.code == 0 and "at step 0 of 10" in result.out
    record = RunDirectory(run).record(pytest.fail)
    assert record and record.origin == Origin("imported", str(exported))
    refused(imported(moebius, exported, tmp_path), 2, "exists")


def test_a_dense_model_becomes_a_mixture_that_computes_the_same(tmp_path, moebius):
    dense = {"model__num_experts": 0, "model__base_expansion": 4, "train__name": "dense"}
    assert moebius("train", "tiny", *micro(tmp_path, **dense, train__steps=2)).code == 0
    assert moebius("export", tmp_path / "runs" / "dense", tmp_path / "out").code == 0
    more = ("--upcycle", "num_experts=3,granularity=2", "--model.aux_loss_coeff", "0.5")
    assert imported(moebius, tmp_path / "out", tmp_path, *more).code == 0
    record = RunDirectory(tmp_path / "runs" / "imported").record(pytest.fail)
    assert record and record.origin is not None
    assert record.origin.upcycled == "num_experts=3,granularity=2,top_k=0"
    language_model = load_run(RunDirectory(tmp_path / "runs" / "imported"), CPU, silent)
    ours, tokenizer = language_model.model, language_model.tokenizer
    original = load_run(RunDirectory(tmp_path / "runs" / "dense"), CPU, silent).model
    assert (ours.config.num_experts, ours.config.aux_loss_coeff) == (6, 0.5)
    ids = torch.tensor([[tokenizer.end_of_text, *tokenizer.encode("line 7: 49")]])
    with torch.no_grad():
        logits, expected = ours(ids).logits_BSV, original(ids).logits_BSV
    assert (expected - logits).abs().max() <= 1e-5 * expected.abs().max()
    refused(imported(moebius, tmp_path / "out", tmp_path, "--upcycle", "8"), 2, "--upcycle 8")


def test_damaged_exports(copy, tmp_path, moebius):
    weights = copy / "model.safetensors"
    tensors = load_file(weights)

    def altered(**changes: torch.Tensor | None) -> Result:
        changed = {**tensors, **changes}
        save_file({n: t for n, t in changed.items() if t is not None}, weights, {"format": "pt"})
        return imported(moebius, copy, tmp_path)

    name = "model.layers.0.self_attn.k_proj.weight"
    refused(altered(**{name: None}), 4, f"tensor {name} is missing")
    refused(altered(**{name: None, "renamed": tensors[name]}), 4, f"tensor {name} is missing")
    refused(altered(renamed=tensors[name].clone()), 4, "tensor renamed: the model has no place")
    refused(altered(**{name: tensors[name][1:].clone()}), 4, f"tensor {name}: has shape")
    refused(altered(**{name: tensors[name] * float("nan")}), 4, f"tensor {name}: has values")
    embedding = "model.embed_tokens.weight"
    fewer = tensors[embedding][:-3].clone()
    refused(altered(**{embedding: fewer}), 4, "embedding.weight is [254, 32]")
    gate = "model.layers.0.mlp.shared_expert_gate.weight"
    refused(altered(**{gate: tensors[gate] + 1}), 4, f"tensor {gate}: must be 0 everywhere")
    weights.write_bytes(weights.read_bytes()[:-100])
    refused(imported(moebius, copy, tmp_path), 4, "model.safetensors: cannot be read")
    weights.unlink()
    refused(imported(moebius, copy, tmp_path), 4, "no checkpoint here")
    assert not (tmp_path / "runs").exists()


def test_damaged_settings_of_exports(copy, tmp_path, moebius):
    file = copy / "config.json"
    values = json.loads(file.read_text())

    def altered(**changes: object) -> Result:
        file.write_text(json.dumps(values | changes))
        return imported(moebius, copy, tmp_path)

    refused(altered(rope_theta=5.0), 4, "rope_theta=5.0: was 10000.0 when")
    refused(altered(norm_topk_prob=True), 4, "norm_topk_prob=True: was False when")
    refused(altered(model_type="gpt2"), 4, "model_type='gpt2': must be one of llama")
    refused(altered(moebius={"dim": 3}), 4, "not a model of Moebius")
    file.write_text("{")
    refused(imported(moebius, copy, tmp_path), 4, "config.json: damaged, not JSON")
    file.unlink()
    refused(imported(moebius, copy, tmp_path), 4, "there is no config.json")
    refused(imported(moebius, tmp_path / "nowhere", tmp_path), 4, "no such folder")
    file.write_text(json.dumps(values))
    (copy / "tokenizer.json").unlink()
    refused(imported(moebius, copy, tmp_path), 3, "no tokenizer.json", "--data.tokenizer")
    refused(imported(moebius, copy, tmp_path, "--model.dim", "64"), 2, "model.dim")


def test_a_run_is_no_export_and_an_export_no_run(run, exported, tmp_path, moebius):
    refused(imported(moebius, run, tmp_path), 4, "a run, not an exported", "moebius branch")
    for words in (("generate", exported), ("export", exported, tmp_path / "out")):
        refused(moebius(*words), 2, "not a run; `moebius import` makes a run of it")
