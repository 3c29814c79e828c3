"""A run as a report sees it: everything that can be read from its directory."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moebius.config import Config
from moebius.config.files import read_config
from moebius.config.printable import printable
from moebius.cost.units import counted
from moebius.data.cache import cache_folder
from moebius.data.inventory import root_of
from moebius.data.shards import META, Meta
from moebius.data.source_names import weighted_sources
from moebius.data.tally import joined_lines
from moebius.errors import CheckpointError, MoebiusError
from moebius.observe.expert_counts import FOLDER, read_counts
from moebius.observe.json_lines import EVENTS, METRICS, SAMPLES
from moebius.observe.line_file import Line, each_line
from moebius.report.curves import Curves, read_curves
from moebius.report.happenings import Happenings, read_happenings
from moebius.report.shares import Shares
from moebius.train import checkpoint_store
from moebius.train.environment import ENVIRONMENT
from moebius.train.not_a_run import not_a_run
from moebius.train.ownership import is_owned
from moebius.train.run_directory import EVALUATIONS, RunDirectory
from moebius.train.run_record import RunRecord

PROFILE, ABLATION = "profile.json", "ablate.json"
"""Files that other commands' `--json` may have been written to, in the run's directory."""
MOST_CELLS, MOST_VALUES = 300_000, 30_000
"""Cells of the heat maps, and figures of layers, for all runs of a report together. Those of a
long run are up to twice as many."""
MOST_SAMPLES = 12
LARGEST_FILE = 20_000_000
"""Bytes of a JSON file that is read as a whole."""
DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""What reading a damaged file may raise. pyarrow's errors are among them."""


@dataclass
class Run:
    """The files of a run, as far as they can be read."""

    root: Path
    config: Config | None = None
    """The configuration. None if neither config.toml nor run.json can be read."""
    curves: Curves = field(default_factory=Curves)
    shares: Shares = field(default_factory=lambda: Shares(MOST_CELLS))
    happenings: Happenings = field(default_factory=Happenings)
    checkpoints: list[int] = field(default_factory=list)
    """Steps of the checkpoints that are there, the latest first."""
    is_owned: bool = False
    """Whether another process is training the run."""
    samples: list[Line] = field(default_factory=list)
    environments: list[Line] = field(default_factory=list)
    """The machines and versions that the run was trained with, each with its first step."""
    text: list[str] = field(default_factory=list)
    """Lines about what was read of the run's text, and what was passed over."""
    profile: dict[str, Any] | None = None
    ablation: dict[str, Any] | None = None
    evaluation: dict[str, Any] | None = None
    """The evaluation of the latest checkpoint that was evaluated, on the run's own text."""
    problems: list[str] = field(default_factory=list)
    """Lines about what could not be read."""

    @property
    def name(self) -> str:
        """The name of the run, which is that of its folder."""
        return printable(self.root.absolute().name)


def read_run(root: Path, num_runs: int = 1) -> Run:
    """Return what can be read of a run. What cannot is named in `Run.problems`.

    num_runs: number of runs that share a report, and so its size. Raises CheckpointError if the
    folder is no run at all.
    """
    check_is_run(root)
    run = Run(root, shares=Shares(MOST_CELLS // num_runs))
    run.config = _config(run)
    with _reading(run, METRICS):
        most_values = MOST_VALUES // num_runs
        run.curves = read_curves(each_line(root / METRICS), run.shares, most_values)
    if (root / FOLDER).is_dir():
        with _reading(run, FOLDER):
            for step, counts in read_counts(root, _problem_of(run)):
                run.shares.add(step, counts)
    if (root / EVENTS).exists() or run.curves.num_lines:
        with _reading(run, EVENTS):
            run.happenings = read_happenings(each_line(root / EVENTS))
    with _reading(run, "checkpoints"):
        run.checkpoints = [
            checkpoint_store.step_of(folder)
            for folder in checkpoint_store.complete(root / "checkpoints")
        ]
    run.is_owned = is_owned(root)
    _read_optional(run)
    _note_damage(run)
    return run


def check_is_run(root: Path) -> None:
    """Raise CheckpointError for a folder that has nothing of a run."""
    if not any((root / name).is_file() for name in ("config.toml", "run.json", METRICS)):
        raise CheckpointError(f"{root}: {not_a_run(root)}")


def _config(run: Run) -> Config | None:
    """Return the run's configuration or, if config.toml is damaged, that of run.json."""
    directory = RunDirectory(run.root)
    with _reading(run, "config.toml"):
        return read_config(str(directory.config_path), [], lambda line: None)
    with suppress(*DAMAGE, MoebiusError):
        if record := RunRecord.read(directory.record_path):
            run.problems.append("config.toml: the configuration shown is that of run.json")
            return record.config
    return None


def _read_optional(run: Run) -> None:
    """Read the files that a run may also have, and the record of its text in data.cache."""
    run.profile = _json_object(run, PROFILE)
    run.ablation = _json_object(run, ABLATION)
    evaluated = sorted((run.root / EVALUATIONS).glob("step-" + "[0-9]" * 8 + ".json"))
    if evaluated:
        run.evaluation = _json_object(run, f"{EVALUATIONS}/{evaluated[-1].name}")
    if (run.root / SAMPLES).exists():
        with _reading(run, SAMPLES):
            lines = (line for line in each_line(run.root / SAMPLES) if line)
            run.samples = _spread([line for line in lines if isinstance(line.get("text"), str)])
    if (run.root / ENVIRONMENT).exists():
        with _reading(run, ENVIRONMENT):
            run.environments = [line for line in each_line(run.root / ENVIRONMENT) if line][-20:]
    if run.config is not None:
        with suppress(*DAMAGE, MoebiusError):
            run.text = list(_text_lines(run, run.config))


def _text_lines(run: Run, config: Config) -> Iterator[str]:
    """Yield lines about the run's text, if it is still prepared in data.cache."""
    record = RunRecord.read(run.root / "run.json")
    folders = record.folders if record else ()
    names = [source.source for source in weighted_sources(config.data)]
    if len(names) != len(folders):
        return
    cache = cache_folder(config.data)
    if not all((cache / folder / META).is_file() for folder in folders):
        yield "what was read of it is no longer in data.cache"
        return
    metas = [Meta.read(cache / folder) for folder in folders]
    tallies = [meta.tally.found_in(root_of(name)) for name, meta in zip(names, metas, strict=True)]
    yield from joined_lines(names, tallies)
    for split, title in (("train", "training"), ("val", "held-out")):
        parts = [meta.splits[split] for meta in metas]
        tokens, documents = (
            sum(getattr(p, key) for p in parts) for key in ("tokens", "documents")
        )
        yield f"{tokens:,} {title} tokens in {documents:,} documents"


def _json_object(run: Run, name: str) -> dict[str, Any] | None:
    """Return the object in a JSON file, or None if there is no such file or it is damaged."""
    path = run.root / name
    if not path.exists():
        return None
    with _reading(run, name):
        if path.stat().st_size > LARGEST_FILE:
            raise ValueError("too large")
        values = json.loads(path.read_bytes())
        if not isinstance(values, dict):
            raise ValueError("not an object")
        return values
    return None


def _spread(lines: list[Line]) -> list[Line]:
    """Return the first, the last and some of the lines in between, evenly spread."""
    if len(lines) <= MOST_SAMPLES:
        return lines
    return [lines[i * (len(lines) - 1) // (MOST_SAMPLES - 1)] for i in range(MOST_SAMPLES)]


@contextmanager
def _reading(run: Run, name: str) -> Iterator[None]:
    """Turn what is wrong with a file into a line, so that the others are still read."""
    try:
        yield
    except FileNotFoundError:
        run.problems.append(f"{name}: missing")
    except MoebiusError as error:
        run.problems.append(str(error))
    except DAMAGE as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        run.problems.append(f"{name}: not readable ({reason})")


def _problem_of(run: Run) -> Callable[[str], None]:
    return lambda line: run.problems.append(line.removeprefix(f"{run.root}/"))


def _note_damage(run: Run) -> None:
    """Add a line about damaged lines of each file."""
    for name, number in (
        (METRICS, run.curves.num_damaged),
        (EVENTS, run.happenings.num_damaged),
    ):
        if number:
            run.problems.append(f"{name}: {counted(number, 'damaged line')} passed over")
    if run.shares.num_damaged:
        run.problems.append(
            f"tokens per expert: those of {run.shares.num_damaged:,} steps passed over, because "
            "they do not belong to this model"
        )
