"""Tasks of lm-evaluation-harness, on a run of ten steps."""

import importlib.util
import json
import sys
from typing import Any

import pytest

import moebius
from moebius.errors import ConfigError, DataError
from moebius.infer.scoring import Text, scores
from moebius.infer.tasks import Tasks, check_installed
from moebius.infer.tasks import _metrics as metrics
from moebius.infer.tasks import _stands_alone as stands_alone
from tests.cli.conftest import trained

__all__ = ["trained"]  # a fixture
needs_harness = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None,
    reason="lm-evaluation-harness (the extra `eval`) is not installed",
)
NUM_QUESTIONS = 12


@pytest.fixture(scope="module")
def model(trained) -> moebius.LanguageModel:
    return moebius.load(trained / "runs" / "run", device="cpu")


@pytest.fixture
def task(tmp_path, monkeypatch):
    """Write a task with its data, and return the path of its file."""
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [
        {"n": n, "right": f" {n * n} is its square", "wrong": f" {n} is its cat, and more"}
        for n in range(NUM_QUESTIONS)
    ]
    data = tmp_path / "questions.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def write(name: str, **settings: Any) -> str:
        values = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data)}},
            "test_split": "test",
            "doc_to_text": "line {{n}}:",
            **settings,
        }
        path = tmp_path / f"{name}.yaml"
        path.write_text(json.dumps(values))  # JSON is YAML
        return str(path)

    return write


CHOICE = {
    "output_type": "multiple_choice",
    "doc_to_choice": "{{[right, wrong]}}",
    "doc_to_target": 0,
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}


@needs_harness
@pytest.mark.heavy
def test_a_task_of_our_own_gives_the_figures_of_its_definition(model, task):
    written = {
        "output_type": "generate_until",
        "doc_to_target": "{{right}}",
        "generation_kwargs": {"until": ["i"], "max_gen_toks": 6},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean"}],
    }
    rolled = {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "line {{n}}:{{right}}, which is longer than the context of the model",
        "metric_list": [{"metric": "bits_per_byte"}],
    }
    names = [task("squares", **CHOICE), task("texts", **written), task("rolled", **rolled)]
    results = Tasks(names).run(model, limit=None, num_fewshot=None)
    assert list(results) == ["squares", "texts", "rolled"]
    assert {result.samples for result in results.values()} == {NUM_QUESTIONS}

    def score(context: str, answer: str) -> float:
        given = [0, *model.tokenizer.encode(context)]
        text = Text([*given, *model.tokenizer.encode(answer)], len(given))
        return scores(model, [text])[0].log_probability

    right = wrong = bits = size = exact = 0
    for n in range(NUM_QUESTIONS):
        answers = f" {n * n} is its square", f" {n} is its cat, and more"
        first, second = (score(f"line {n}:", answer) for answer in answers)
        right, wrong = right + (first > second), wrong + (first < second)
        text = f"line {n}:{answers[0]}, which is longer than the context of the model"
        bits, size = bits - score("", text), size + len(text)
        options: Any = {"max_tokens": 6, "temperature": 0, "stop": "i"}
        exact += model.generate(f"line {n}:", **options) == answers[0]
    assert right + wrong == NUM_QUESTIONS
    assert results["squares"].metrics["acc"]["value"] == pytest.approx(right / NUM_QUESTIONS)
    assert results["texts"].metrics["exact_match"]["value"] == exact / NUM_QUESTIONS
    bits_per_byte = bits / size / 0.6931471805599453
    assert results["rolled"].metrics["bits_per_byte"]["value"] == pytest.approx(bits_per_byte)


@needs_harness
@pytest.mark.heavy
def test_the_number_of_questions_and_of_examples(model, task):
    settings = {**CHOICE, "fewshot_split": "test", "num_fewshot": 1}
    (result,) = Tasks([task("few", **settings)]).run(model, limit=5, num_fewshot=2).values()
    assert (result.samples, result.num_fewshot) == (5, 2)


@needs_harness
@pytest.mark.heavy
def test_names_that_are_not_known_and_data_that_is_not_there(model, task, tmp_path):
    with pytest.raises(ConfigError, match=r"--tasks hellasswag: no such task.*hellaswag\?"):
        Tasks(["hellasswag"])
    with pytest.raises(ConfigError, match=r"gone\.yaml: no such task"):
        Tasks([str(tmp_path / "gone.yaml")])
    assert len(Tasks(["mmlu_*_history*"]).names) > 1
    lost = {"dataset_kwargs": {"data_files": {"test": str(tmp_path / "gone.jsonl")}}}
    with pytest.raises(DataError, match=r"lost\.yaml: FileNotFoundError"):
        Tasks([task("lost", **CHOICE, **lost)]).run(model, None, None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("task: mine\ndoc_to_text: a group of words", True),
        ('{"task": "mine", "output_type": "multiple_choice"}', True),
        ("group: mine\ntask:\n  - arc_easy", False),
        ("task:\n  - arc_easy", False),
        ("task:  # the easy ones\n  - arc_easy", False),
        ("task: &easy\n  - arc_easy", False),
        ('{"task": ["arc_easy"]}', False),
        ("include: other.yaml\ntask: mine", False),
    ],
)
def test_files_that_name_no_other_task(tmp_path, text, expected):
    """The harness then need not parse the files of all its tasks, which takes a minute."""
    (tmp_path / "mine.yaml").write_text(text)
    assert stands_alone(str(tmp_path / "mine.yaml")) is expected
    assert not stands_alone("mine.yaml") and not stands_alone("arc_easy")


def test_metrics_of_the_harness():
    values = {
        "alias": "x",
        "acc,none": 0.25,
        "acc_stderr,none": 0.1,
        "match,strict": 1.0,
        "match_stderr,strict": 0.0,
        "bpb,none": 2.0,
        "bpb_stderr,none": "N/A",
    }
    found = metrics(values)
    assert list(found) == ["acc", "match,strict", "bpb"]
    assert found["acc"] == pytest.approx(
        {"value": 0.25, "stderr": 0.1, "low": 0.25 - 0.196, "high": 0.25 + 0.196}, abs=1e-4
    )
    for name, value in (("match,strict", 1.0), ("bpb", 2.0)):
        assert found[name] == {"value": value, "stderr": None, "low": None, "high": None}


def test_without_the_harness_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ConfigError, match=r"pip install 'moebius\[eval\]'"):
        check_installed()
