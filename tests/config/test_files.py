"""Presets, files and flags: which one wins, whether TOML reads back as itself, errors in files."""

import dataclasses
import shlex
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moebius.config import Config
from moebius.config.files import override, read_config, to_toml
from moebius.config.observe import ObserveConfig, Rule
from moebius.config.presets import PRESETS, preset
from moebius.config.printable import print_note
from moebius.errors import ConfigError


def written(path: Path, text: str | bytes) -> str:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def refusal(source: str, *flags: str) -> str:
    with pytest.raises(ConfigError) as refused:
        read_config(source, list(flags))
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_preset_gives_way_to_a_file_and_that_to_flags(tmp_path: Path):
    file = written(
        tmp_path / "own.toml",
        'base = "tiny"\n[train]\nsteps = 7\nlr = 0.25\n[model]\nnum_layers = 3\n',
    )
    config = read_config(file, ["--train.steps", "9"])
    assert (config.train.steps, config.train.lr, config.model.num_layers) == (9, 0.25, 3)
    assert config.train.seq_len == preset("tiny").train.seq_len != Config().train.seq_len
    assert read_config("tiny", []) == preset("tiny")


def test_a_file_without_a_base_stands_on_the_defaults(tmp_path: Path):
    assert read_config(written(tmp_path / "empty.toml", ""), []) == Config()
    assert read_config(written(tmp_path / "sections.toml", "[model]\n[train]\n"), []) == Config()


def test_a_base_is_found_from_the_file_that_names_it(tmp_path: Path, monkeypatch):
    (tmp_path / "deep").mkdir()
    written(tmp_path / "root.toml", 'base = "standard"\n[train]\nsteps = 5\nlr = 0.5\n')
    written(tmp_path / "deep" / "middle.toml", 'base = "../root.toml"\n[train]\nsteps = 6\n')
    last = written(
        tmp_path / "last.toml", f'base = "{tmp_path}/deep/middle.toml"\n[train]\nseed = 3\n'
    )
    monkeypatch.chdir("/")
    config = read_config(last, [])
    assert config == replace(
        preset("standard"), train=replace(preset("standard").train, steps=6, lr=0.5, seed=3)
    )


def test_a_base_that_leads_back_to_itself_is_refused(tmp_path: Path):
    for name, base in (("a", "b"), ("b", "c"), ("c", "a")):
        written(tmp_path / f"{name}.toml", f'base = "{base}.toml"\n')
    assert (
        refusal(str(tmp_path / "a.toml"))
        == f"{tmp_path / 'a.toml'}: its base leads back to itself"
    )
    itself = written(tmp_path / "itself.toml", 'base = "itself.toml"')
    assert "leads back to itself" in refusal(itself)


def test_a_long_chain_of_bases_is_refused_in_one_line(tmp_path: Path):
    for number in range(1500):
        written(tmp_path / f"{number}.toml", f'base = "{number + 1}.toml"\n')
    written(tmp_path / "1500.toml", "")
    assert refusal(str(tmp_path / "0.toml")).endswith(
        "more than 100 files lead here by their bases"
    )
    assert read_config(str(tmp_path / "1401.toml"), []) == Config()


def test_the_directory_of_a_run_is_not_mistaken_for_a_preset(tmp_path: Path):
    written(tmp_path / "config.toml", to_toml(Config()))
    error = refusal(str(tmp_path))
    assert f"`moebius resume {tmp_path}`" in error and f"{tmp_path / 'config.toml'} is" in error


def test_the_ending_of_a_file_may_be_upper_case(tmp_path: Path):
    written(tmp_path / "base.TOML", "[train]\nsteps = 3\n")
    path = written(tmp_path / "own.Toml", 'base = "base.TOML"\n')
    assert read_config(path, []).train.steps == 3


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_reads_back_from_its_toml_as_itself(name, tmp_path: Path):
    text = to_toml(preset(name))
    assert read_config(written(tmp_path / "config.toml", text), []) == preset(name)
    assert set(tomllib.loads(text)) == {
        field.name for field in dataclasses.fields(Config)
    }  # resolved: no base


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("model", {"num_layers": 4, "num_experts": (4, 4, 8, 8)}),
        ("model", {"norm_eps": 1e-05, "rope_theta": 1e16}),
        ("train", {"lr": 1e-320, "min_lr_fraction": 0.1 + 0.2}),
        ("train", {"steps": 2**63 - 1}),
        ("data", {"source": 'a "quoted" \\ back\\\\slash'}),
        ("data", {"source": "C:\\new\\table"}),
        (
            "data",
            {"source": "".join(map(chr, range(1, 0x180)))},
        ),  # every control character but null
        ("data", {"source": "grün 中文 😀 \u2028 \ufeff \U0010ffff"}),
        ("data", {"text_field": "[model]\n# no comment"}),
        ("observe", {"progress": False}),
        (
            "observe",
            {
                "tensorboard": False,
                "cv": {"threshold": 1e-320},
                "router_gradient": {"threshold": 0.1 + 0.2},
            },
        ),
        (
            "observe",
            {
                "dead_expert": {"action": "revive", "patience": 2**63 - 1, "window": 7},
                "router_logits": {"action": "off"},
            },
        ),
    ],
)
def test_odd_values_read_back_as_themselves(section, values, tmp_path: Path):
    config = override(Config(), {section: values})
    assert read_config(written(tmp_path / "config.toml", to_toml(config)), []) == config


SECTIONS = "model, data, train, parallel, observe"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[modell]\ndim = 3",
            f"unknown section 'modell': must be one of {SECTIONS}; did you mean model?",
        ),
        ("[model]\ndmi = 3", "model.dmi: no such setting; did you mean model.dim?"),
        (
            "[model]\nzzzzzz = 3",
            "model.zzzzzz: no such setting; `moebius train --help` lists the settings of model",
        ),
        (
            "steps = 3",
            f"unknown section 'steps': must be one of {SECTIONS}; did you mean train.steps?",
        ),
        ("zzzzzz = 3", f"unknown section 'zzzzzz': must be one of {SECTIONS}"),
        ("model = 3", "model=3: must be a table of settings, [model]"),
        ("[[model]]\ndim = 3", "model=[{'dim': 3}]: must be a table of settings, [model]"),
        ('[model]\ndim = "3"', "model.dim='3': must be an integer"),
        ("[train]\nsteps = 1.5e0", "train.steps=1.5: must be an integer"),
        ("[train]\nlr = inf", "train.lr=inf: must be a finite number"),
        ("[train]\nlr = nan", "train.lr=nan: must be a finite number"),
        (
            "[train]\nseed = 99999999999999999999999",
            "train.seed=99999999999999999999999: must be below 2**63",
        ),
        ("[data]\nsource = 1979-05-27", "data.source=datetime.date(1979, 5, 27): must be text"),
        (
            '[data]\nsource = "a\\u0000"',
            "data.source='a\\x00': must be UTF-8 text without null characters",
        ),
        (
            "[model]\nnum_experts = [4, 8]",
            "model.num_experts=[4, 8]: must be one number, or one for each of the",
        ),
        (
            "[model]\nvocab_size = 300\n[data]\nvocab_size = 400",
            "data.vocab_size=400: must be at most model.vocab_size (300); "
            "set --model.vocab_size 400",
        ),
        ("[observe]\ncv = 3", "observe.cv=3: must be a table of settings, [observe.cv]"),
        (
            "[[observe.cv]]\nwindow = 3",
            "observe.cv=[{'window': 3}]: must be a table of settings, [observe.cv]",
        ),
        (
            "[observe.cv]\nwindo = 3",
            "observe.cv.windo: no such setting; did you mean observe.cv.window?",
        ),
        (
            "[observe.cv]\nzzz = 3",
            "observe.cv.zzz: no such setting; `moebius train --help` lists the settings of "
            "observe.cv",
        ),
        (
            "[observe.dead_experts]\nwindow = 3",
            "observe.dead_experts: no such setting; did you mean observe.dead_expert.window?",
        ),
        ('[observe.cv]\nwindow = "3"', "observe.cv.window='3': must be an integer"),
        ("[observe.cv]\nwindow = 0", "observe.cv.window=0: must be at least 1"),
        ("[observe.cv]\nthreshold = -0.1", "observe.cv.threshold=-0.1: must be at least 0"),
        ("[observe.cv]\nthreshold = nan", "observe.cv.threshold=nan: must be a finite number"),
        ("[observe.cv.threshold]\nx = 3", "observe.cv.threshold={'x': 3}: must be a number"),
        ("[observe.progress]\nx = 3", "observe.progress={'x': 3}: must be true or false"),
        (
            '[observe.router_logits]\naction = "revive"',
            "observe.router_logits.action='revive': this alarm's action must be one of off, "
            "warn, stop",
        ),
        ("base = 3", "base=3: must be the name of a preset or a TOML file"),
        (
            'base = "standrad"',
            "base: preset 'standrad': must be one of tiny, pr_moe, standard, stability, switch, "
            "dense, dense_112m, olmoe, qwen3_moe_30b, mixtral, llama3_8b, or a TOML file; did "
            "you mean standard?",
        ),
        ("[model]\ndim = 3\ndim = 4", "Cannot overwrite a value (at "),
        ("[model]\ndim = [4\n[train]", "Unclosed array (at line 3, column 1)"),
        (b"[data]\nsource = '\xff'", "byte offset 17 is not UTF-8"),
        ("[train]\nsteps = " + "9" * 5000, "Exceeds the limit"),
        (
            "model = 0x" + "f" * 5000,
            "model=(an integer of thousands of digits): must be a table of settings, [model]",
        ),
        ("[model]\nnum_experts = " + "[" * 9999, "its lists or tables are nested too deeply"),
    ],
)
def test_an_error_in_a_file_names_the_file(text, message, tmp_path: Path):
    file = written(tmp_path / "own.toml", text)
    error = refusal(file)
    assert error.startswith(f"{file}: {message}"), error


def test_an_error_in_a_base_names_the_base(tmp_path: Path):
    written(tmp_path / "base.toml", "[model]\ndmi = 3")
    file = written(tmp_path / "own.toml", 'base = "base.toml"')
    assert refusal(file).startswith(f"{tmp_path / 'base.toml'}: model.dmi")
    assert refusal(written(tmp_path / "other.toml", 'base = "gone.toml"')) == (
        f"{tmp_path / 'gone.toml'}: No such file or directory"
    )


def test_a_source_that_cannot_be_read(tmp_path: Path):
    assert (
        refusal(str(tmp_path / "gone.toml"))
        == f"{tmp_path / 'gone.toml'}: No such file or directory"
    )
    (tmp_path / "folder.toml").mkdir()
    assert refusal(str(tmp_path / "folder.toml")) == f"{tmp_path / 'folder.toml'}: Is a directory"
    assert refusal("stanard").endswith("or a TOML file; did you mean standard?")
    assert refusal("runs/x").startswith("preset 'runs/x': must be one of tiny, ")


def test_a_configuration_is_checked_as_a_whole():
    # 13 layers and 13 numbers of experts are only valid together.
    config = read_config(
        "tiny", ["--model.num_experts", ",".join(["3"] * 13), "--model.num_layers", "13"]
    )
    assert config.model.experts_per_layer == (3,) * 13
    config = read_config("tiny", ["--data.vocab_size", "5000", "--model.vocab_size", "5000"])
    assert config.data.vocab_size == config.model.vocab_size == 5000


@pytest.mark.parametrize(
    ("text", "name", "values"),
    [
        ("[observe.cv]\nthreshold = 0.5", "cv", {"threshold": 0.5}),
        ("[observe.cv]\nwindow = 3", "cv", {"window": 3}),
        ("[observe]\ncv = {patience = 0}", "cv", {"patience": 0}),
        ('[observe]\ndead_expert.action = "revive"', "dead_expert", {"action": "revive"}),
        ("[observe.router_logits]\nthreshold = 3", "router_logits", {"threshold": 3.0}),
        ('[observe.loss_spike]\naction = "roll_back"', "loss_spike", {"action": "roll_back"}),
        ("[observe.cv]", "cv", {}),
    ],
)
def test_a_table_of_one_field_leaves_the_rules_other_fields(text, name, values, tmp_path: Path):
    config = read_config(written(tmp_path / "own.toml", text), [])
    rule = replace(getattr(ObserveConfig(), name), **values)
    assert config == replace(Config(), observe=replace(ObserveConfig(), **{name: rule}))


def test_a_rules_fields_come_from_the_base_then_the_file_then_the_flags(tmp_path: Path):
    written(
        tmp_path / "base.toml",
        '[observe.cv]\nthreshold = 0.7\nwindow = 3\naction = "stop"\n'
        "[observe]\nprogress = false\n",
    )
    file = written(
        tmp_path / "own.toml", 'base = "base.toml"\n[observe.cv]\nwindow = 4\npatience = 8\n'
    )
    observe = read_config(
        file, ["--observe.cv.patience", "9", "--observe.dead-expert.threshold=0.02"]
    ).observe
    assert observe.cv == Rule(threshold=0.7, window=4, patience=9, action="stop")
    assert observe.dead_expert == replace(ObserveConfig().dead_expert, threshold=0.02)
    assert not observe.progress and observe.tensorboard


def test_a_written_configuration_has_a_table_for_every_rule():
    flags = ["--observe.cv.action", "raise_aux", "--observe.router_gradient.threshold", "1e-07"]
    tables: dict[str, Any] = tomllib.loads(to_toml(read_config("tiny", flags)))["observe"]
    assert [name for name, value in tables.items() if isinstance(value, dict)] == list(
        ObserveConfig().rules()
    )
    assert all(
        set(tables[name]) == {"threshold", "window", "patience", "action"}
        for name in ObserveConfig().rules()
    )
    assert (
        tables["cv"]["action"] == "raise_aux" and tables["router_gradient"]["threshold"] == 1e-07
    )


@pytest.mark.parametrize("text", ["", 'base = "tiny"\n', "[train]\nsteps = 3\n", "# grün\n"])
def test_a_byte_order_mark_is_not_part_of_a_file(text, tmp_path: Path):
    plain = written(tmp_path / "plain.toml", text)
    marked = written(tmp_path / "marked.toml", b"\xef\xbb\xbf" + text.encode())
    assert read_config(marked, []) == read_config(plain, [])
    with_base = written(tmp_path / "own.toml", 'base = "marked.toml"')
    assert read_config(with_base, []) == read_config(plain, [])


def test_a_note_is_printed_once_per_process(capsys):
    for note in ("first.toml: a note", "first.toml: a note", "second.toml: a note"):
        print_note(note)
    printed = capsys.readouterr()
    assert printed.err == "moebius: first.toml: a note\nmoebius: second.toml: a note\n"
    assert not printed.out


def test_toml_has_no_control_characters():
    """It is printed on terminals, and a source may have any name."""
    source = "a\x1b]0;b\x07\x7f\x9b\u202e\u2066\u2028é漢\U0001f600"
    config = replace(Config(), data=replace(Config().data, source=source))
    text = to_toml(config)
    assert all(letter == "\n" or letter.isprintable() for letter in text)
    assert override(Config(), tomllib.loads(text)) == config


def test_a_note_is_one_line_without_control_characters(capsys):
    print_note("a\x1b]0;title\x07\nb")
    assert capsys.readouterr().err == "moebius: a\\x1b]0;title\\x07 b\n"


@pytest.mark.parametrize(
    "source",
    [
        "corpus",
        "corpus/a b.txt",
        "./corpus/",
        "corpus/*.txt",
        "hf:a/b",
        "s3://b/c",
        "python-stdlib",
    ],
)
def test_a_text_in_place_of_the_configuration_is_told_from_one(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a b.txt").write_text("a text")
    with pytest.raises(ConfigError) as refused:
        read_config(source, [])
    assert str(refused.value) == (
        f"{source}: neither a preset nor a TOML file; text is given as "
        f"--data.source {shlex.quote(source)}"
    )


def test_a_folder_that_is_named_like_a_preset_hides_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    assert read_config("tiny", []) == preset("tiny")
