"""Evaluate a language model on tasks of lm-evaluation-harness, through its Python interface."""

import difflib
import math
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from moebius.config.suggestions import SIMILAR
from moebius.errors import ConfigError, DataError, MoebiusError
from moebius.infer.interval import student_t
from moebius.infer.language_model import LanguageModel

BOOTSTRAPS = 1000
"""Number of samples from which the harness estimates errors that have no formula."""
PLAIN = ",none"
"""What the harness adds to the name of a metric without a filter."""
NAMES_OTHERS = re.compile(
    r"""\b(group|include)["']?\s*:|\btask["']?\s*:\s*([\[#&]|$)""", re.MULTILINE
)
"""Matches the YAML of a group, of a list of tasks, or of a task that is made from another one."""


class TaskResult(NamedTuple):
    """The result of one task, or of a group of tasks."""

    metrics: dict[str, dict[str, float | None]]
    """For each metric its `value`, its `stderr` and the ends of its confidence interval, `low` and
    `high`. They are None where the harness gives no standard error, and where it is 0: that all
    questions went alike does not make the value certain."""
    samples: int | None
    """Number of questions that were asked; None for a group."""
    num_fewshot: int | None
    """Number of examples before each question; None for a group."""
    version: str | None
    """Version of the task."""


def check_installed() -> None:
    """Raise ConfigError if the harness is not installed."""
    try:
        import lm_eval  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ConfigError(
            "--tasks: needs lm-evaluation-harness, which is not installed; "
            "`pip install 'moebius[eval]'`"
        ) from None


class Tasks:
    """The tasks of the harness that a model is to be evaluated on."""

    def __init__(self, names: Sequence[str]):
        """Find the tasks. A name may be a task's, a group's, a pattern, or that of a YAML file.

        Raises ConfigError for a name that is none of these, with the most similar one.
        """
        self._manager = _manager(not all(map(_stands_alone, names)))
        self.names: list[str] = []
        for name in names:
            found = [name] if _is_file(name) else sorted(self._manager.match_tasks([name]))
            if not found:
                known = self._manager.all_tasks
                close = difflib.get_close_matches(name, known, n=1, cutoff=SIMILAR)
                hint = f"did you mean {close[0]}?" if close else "`lm_eval ls tasks` lists them"
                raise ConfigError(f"--tasks {name}: no such task, group or .yaml file; {hint}")
            self.names += found

    def run(
        self, model: LanguageModel, limit: int | None, num_fewshot: int | None
    ) -> dict[str, TaskResult]:
        """Return the result of each task and group by its name.

        limit: largest number of questions of a task; None asks all of them.
        num_fewshot: number of examples before a question; None leaves it to the task.

        Raises DataError if a task cannot be run, for example because its data cannot be loaded.
        """
        import torch
        from lm_eval import simple_evaluate  # pyright: ignore[reportMissingImports]

        from moebius.infer.harness_model import HarnessModel

        try:
            found: dict[str, Any] | None = simple_evaluate(
                model=HarnessModel(model),
                tasks=self.names,
                task_manager=self._manager,
                limit=limit,
                num_fewshot=num_fewshot,
                bootstrap_iters=BOOTSTRAPS,
                log_samples=False,
            )
        except (MoebiusError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # whatever the code of a task or a data set raises
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise DataError(f"--tasks {','.join(self.names)}: {reason}") from error
        assert found is not None  # the only process is the first one
        return {
            name: TaskResult(
                metrics=_metrics(values),
                samples=found.get("n-samples", {}).get(name, {}).get("effective"),
                num_fewshot=found.get("n-shot", {}).get(name),
                version=_text(found.get("versions", {}).get(name)),
            )
            for name, values in found["results"].items()
        }


@cache
def _manager(with_known_tasks: bool) -> Any:
    """Return the harness's manager of tasks.

    with_known_tasks: it knows the tasks that come with the harness by their names. It parses the
    files of all of them for that, which takes a minute.
    """
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    return TaskManager(include_defaults=with_known_tasks)


def _stands_alone(name: str) -> bool:
    """Return whether a name is that of a YAML file of one task, which names no other task."""
    if not _is_file(name):
        return False
    try:
        return not NAMES_OTHERS.search(Path(name).read_text("utf-8"))
    except (OSError, UnicodeDecodeError):
        return False  # the harness says what is wrong with it


def _is_file(name: str) -> bool:
    return name.endswith((".yaml", ".yml")) and Path(name).is_file()


def _metrics(values: dict[str, Any]) -> dict[str, dict[str, float | None]]:
    """Return the metrics among the harness's values, whose names are such as `acc,none`."""
    metrics: dict[str, dict[str, float | None]] = {}
    for key, value in values.items():
        name, comma, filtered = key.partition(",")
        if not comma or name.endswith("_stderr") or not _is_number(value):
            continue
        error = values.get(f"{name}_stderr,{filtered}")
        half = None
        if _is_number(error) and math.isfinite(error) and error > 0:
            half = student_t(math.inf) * error
        metrics[key.removesuffix(PLAIN)] = {
            "value": float(value),
            "stderr": None if half is None else error,
            "low": None if half is None else value - half,
            "high": None if half is None else value + half,
        }
    return metrics


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
