"""The files of evaluations: their names, what is added to them, numbers that are not finite."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moebius.config import Config
from moebius.errors import StorageError
from moebius.infer.evaluable import Evaluable
from moebius.infer.evaluation_file import (
    check_writable,
    tasks_file,
    tasks_values,
    text_file,
    to_json,
    write,
)
from moebius.infer.tasks import TaskResult


def evaluable(folder: Path, **changes: Any) -> Evaluable:
    tokenizer: Any = None  # which tasks do not need
    model = Evaluable(
        folder, None, 12, "abc", Config(), {}, tokenizer, folder / "tokenizer.json", 64
    )
    return replace(model, **changes)


def result(value: float) -> TaskResult:
    metrics: dict[str, float | None] = {"value": value, "stderr": None, "low": None, "high": None}
    return TaskResult({"acc": metrics}, 10, 0, "1")


def test_every_text_has_a_file_of_its_own(tmp_path):
    model = evaluable(tmp_path)
    sources = ["", "a/b.txt", "a-b.txt", "hf:x/y", "/" * 300, "x" * 300, "\udcff", "..", "é"]
    files = [text_file(model, source) for source in sources] + [tasks_file(model)]
    assert len(set(files)) == len(files)
    assert files[0] == tmp_path / "evaluations" / "step-00000012.json"
    for file in files:
        assert file.parent == tmp_path / "evaluations" and len(file.name) < 100
        assert file.name.startswith("step-00000012") and file.name.isascii()
    assert text_file(evaluable(tmp_path, step=None), "").name == "model.json"


def test_tasks_are_added_to_those_of_the_same_weights(tmp_path):
    model = evaluable(tmp_path)
    write(tasks_file(model), tasks_values(model, {"a": result(1), "b": result(2)}, "float32"))
    write(tasks_file(model), tasks_values(model, {"b": result(3)}, "float32"))
    kept = json.loads(tasks_file(model).read_text())["tasks"]
    assert {name: one["metrics"]["acc"]["value"] for name, one in kept.items()} == {"a": 1, "b": 3}
    for other, dtype in ((replace(model, checkpoint="d"), "float32"), (model, "bfloat16")):
        assert list(tasks_values(other, {"c": result(1)}, dtype)["tasks"]) == ["c"]
    same = '{"version": 1, "checkpoint": "abc", "dtype": "float32"'
    rests = ("}", ', "tasks": 3}', ', "tasks": [3]}')
    for damage in ("", "[]", "null", "{", "[" * 100_000, *(same + rest for rest in rests)):
        tasks_file(model).write_text(damage)
        assert list(tasks_values(model, {"c": result(1)}, "float32")["tasks"]) == ["c"]


def test_the_length_of_what_is_read_at_once(tmp_path):
    model = evaluable(tmp_path)
    assert tasks_values(model, {}, "float32")["seq_len"] == model.context == 64


def test_numbers_that_are_not_finite_are_null():
    values = {"a": [math.inf, {"b": math.nan}], "c": 1.5, "d": None}
    assert json.loads(to_json(values)) == {"a": [None, {"b": None}], "c": 1.5, "d": None}


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "evaluations").touch()
    with pytest.raises(StorageError, match="evaluations: File exists"):
        check_writable(text_file(evaluable(tmp_path), ""))
    with pytest.raises(StorageError, match="No such file"):
        check_writable(text_file(evaluable(tmp_path / "gone"), ""))
