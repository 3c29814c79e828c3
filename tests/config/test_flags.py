"""Flags become nested values by the settings' types, and every error is one line."""

from typing import Literal

import pytest

from moebius.config.files import read_config
from moebius.config.flags import parse_flags, parse_text
from moebius.errors import ConfigError

Count = int | tuple[int, ...]
Kind = Literal["auto", "on", "off"]


@pytest.mark.parametrize(
    ("text", "annotation", "value"),
    [
        ("12", int, 12),
        ("-3", int, -3),
        ("1_000", int, 1000),
        ("1e3", int, 1000.0),  # the check that follows makes it an integer
        ("5", float, 5),
        ("1e-05", float, 1e-05),
        ("-.5", float, -0.5),
        ("1e400", float, float("inf")),
        ("many", int, "many"),
        ("", float, ""),
        ("true", bool, True),
        ("True", bool, True),
        ("FALSE", bool, False),
        ("yes", bool, "yes"),
        ("1", bool, 1),
        ("4", Count, 4),
        ("4,4,8,8", Count, [4, 4, 8, 8]),
        ("[4,8]", Count, [4, 8]),
        ("[4, 8]", Count, [4, 8]),
        ("(4,)", Count, [4]),
        ("4,", Count, [4]),
        ("[]", Count, []),
        ("4,,8", Count, [4, "", 8]),
        ("4,x", Count, [4, "x"]),
        ("12", str, "12"),
        ("true", str, "true"),
        ("[a,b]", str, "[a,b]"),
        ("", str, ""),
        ("on", Kind, "on"),
        ("1", Kind, "1"),
    ],
)
def test_what_a_text_stands_for(text, annotation, value):
    parsed = parse_text(text, annotation)
    assert parsed == value and type(parsed) is type(value)


@pytest.mark.parametrize(
    ("flags", "section", "values"),
    [
        (["--train.steps", "5"], "train", {"steps": 5}),
        (["--train.steps=5"], "train", {"steps": 5}),
        (
            ["--train.min-lr-fraction", "0.5", "--train.beta1", "1e-05"],
            "train",
            {"min_lr_fraction": 0.5, "beta1": 1e-05},
        ),
        (["--train.lr", "-1"], "train", {"lr": -1}),
        (["--train.name", "-x-"], "train", {"name": "-x-"}),
        (["--data.source=--a=b-c"], "data", {"source": "--a=b-c"}),
        (["--data.source", "a-b.txt"], "data", {"source": "a-b.txt"}),
        (["--train.name", "12"], "train", {"name": "12"}),
        (["--train.name="], "train", {"name": ""}),
        (["--model.num_experts", "4,4,8,8"], "model", {"num_experts": [4, 4, 8, 8]}),
        (["--model.num-experts", "[4,8]"], "model", {"num_experts": [4, 8]}),
        (["--model.use_mtp", "true"], "model", {"use_mtp": True}),
        (
            ["--model.use_mtp", "True", "--model.qk_norm=false"],
            "model",
            {"use_mtp": True, "qk_norm": False},
        ),
        (["--observe.cv.threshold", "0.5"], "observe", {"cv": {"threshold": 0.5}}),
        (
            ["--observe.dead-expert.action=revive"],
            "observe",
            {"dead_expert": {"action": "revive"}},
        ),
        (
            [
                "--observe.cv.window",
                "3",
                "--observe.progress=false",
                "--observe.cv.patience=9",
            ],
            "observe",
            {"cv": {"window": 3, "patience": 9}, "progress": False},
        ),
    ],
)
def test_flags(flags, section, values):
    assert parse_flags(flags) == {section: values}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model.dmi", "3"], "--model.dmi: no such setting; did you mean --model.dim?"),
        (
            ["--model.num-expert", "3"],
            "--model.num-expert: no such setting; did you mean --model.num_experts?",
        ),
        (["--modell.dim", "3"], "--modell.dim: no such setting; did you mean --model.dim?"),
        (["--zzzz.yyyy", "3"], "--zzzz.yyyy: no such setting"),
        (
            ["--steps", "3"],
            "'--steps': not understood; settings are given as --section.key value; "
            "did you mean --train.steps?",
        ),
        (
            ["steps=3"],
            "'steps=3': not understood; settings are given as --section.key value; "
            "did you mean --train.steps?",
        ),
        (
            ["train.steps", "3"],
            "'train.steps': not understood; settings are given as --section.key value; "
            "did you mean --train.steps?",
        ),
        (
            ["--train.steps", "3", "stray"],
            "'stray': not understood; settings are given as --section.key value",
        ),
        (["--train.steps"], "--train.steps: a value is missing"),
        (["--train.steps", "--train.lr", "1"], "--train.steps: a value is missing"),
        (
            ["--data.source", "a", "--train.steps=3", "--data.source=b"],
            "--data.source: given twice, as 'a' and as 'b'; several are separated by commas: A,B",
        ),
        (
            ["--data.weights=2", "--data.weights", "4"],
            "--data.weights: given twice, as '2' and as '4'; several are separated by commas: A,B",
        ),
        (
            ["--train.steps", "3", "--train.lr=1", "--train.steps=4"],
            "--train.steps: given twice, as '3' and as '4'; give it once",
        ),
        (
            ["--train.batch-size=5", "--train.batch_size=5"],
            "--train.batch_size: given twice, as '5' and as '5'; give it once",
        ),
        (
            ["--observe.cv.window=3", "--observe.progress=false", "--observe.cv.window", "4"],
            "--observe.cv.window: given twice, as '3' and as '4'; give it once",
        ),
        (["--train.steps", "1.5e0"], "train.steps=1.5: must be an integer"),
        (["--train.steps", "1e16"], "train.steps=1e+16: must be an integer"),
        (["--train.steps", "many"], "train.steps='many': must be an integer"),
        (["--train.steps", "true"], "train.steps=True: must be an integer"),
        (["--train.steps", "-5"], "train.steps=-5: must be at least 1"),
        (
            ["--train.seed", "99999999999999999999999"],
            "train.seed=99999999999999999999999: must be below 2**63",
        ),
        (["--train.seed", "9" * 5000], "train.seed=inf: must be an integer"),
        (["--train.lr", ""], "train.lr='': must be a number"),
        (["--train.lr", "1e999"], "train.lr=inf: must be a finite number"),
        (["--model.use_mtp", "yes"], "model.use_mtp='yes': must be true or false"),
        (["--model.num_experts", "4,,8"], "model.num_experts=[4, '', 8]: must be an integer"),
        (
            ["--train.optimizer", "adam"],
            "train.optimizer='adam': must be one of adamw, muon; did you mean adamw?",
        ),
        (
            ["--observe.cv.treshold", "3"],
            "--observe.cv.treshold: no such setting; did you mean --observe.cv.threshold?",
        ),
        (
            ["--observe.dead-experts.action", "warn"],
            "--observe.dead-experts.action: no such setting; "
            "did you mean --observe.dead_expert.action?",
        ),
        (["--observe.cv", "3"], "--observe.cv: no such setting; did you mean --observe.cv."),
        (
            ["--observe.cv.threshold.high", "3"],
            "--observe.cv.threshold.high: no such setting; did you mean --observe.cv.threshold?",
        ),
        (
            ["--observe.progress.on", "true"],
            "--observe.progress.on: no such setting; did you mean --observe.progress?",
        ),
        (
            ["--cv.threshold", "3"],
            "--cv.threshold: no such setting; did you mean --observe.cv.threshold?",
        ),
        (["--observe.cv.threshold"], "--observe.cv.threshold: a value is missing"),
        (["--observe.cv.threshold", "low"], "observe.cv.threshold='low': must be a number"),
        (["--observe.cv.threshold", "-1"], "observe.cv.threshold=-1.0: must be at least 0"),
        (["--observe.cv.window", "0"], "observe.cv.window=0: must be at least 1"),
        (["--observe.cv.patience", "1e-2"], "observe.cv.patience=0.01: must be an integer"),
        (
            ["--observe.cv.action", "revve"],
            "observe.cv.action='revve': must be one of off, warn, raise_aux, ",
        ),
        (
            ["--observe.router-logits.action", "revive"],
            "observe.router_logits.action='revive': this alarm's action must be one of off, "
            "warn, stop",
        ),
        (
            ["--observe.cv.action", "roll_back"],
            "observe.cv.action='roll_back': this alarm's action must be one of off, warn, "
            "raise_aux, nudge_bias, revive, stop",
        ),
        (
            ["--observe.dropped_tokens.action", "revive"],
            "observe.dropped_tokens.action='revive': this alarm's action must be one of off, "
            "warn, raise_aux, nudge_bias, stop",
        ),
        (
            ["--data.source", "\udcff"],
            "data.source='\\udcff': must be UTF-8 text without null characters",
        ),
        (
            ["--model.capacity_drop", "last"],
            "--model.capacity_drop is no longer a setting (a full expert drops ",
        ),
    ],
)
def test_an_error_in_a_flag(flags, message):
    with pytest.raises(ConfigError) as caught:
        read_config("tiny", flags)
    assert str(caught.value).startswith(message), str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_integer_may_be_written_with_an_exponent():
    flags = ["--train.steps", "2e4", "--model.num_experts=4,8e0,8,4.0", "--observe.cv.window=1e1"]
    config = read_config("tiny", flags)
    values = (config.train.steps, *config.model.experts_per_layer, config.observe.cv.window)
    assert values == (20000, 4, 8, 8, 4, 10)
    assert {type(value) for value in values} == {int}
