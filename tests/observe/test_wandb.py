"""Weights & Biases gets a run through its own library, which can neither hold it up nor end it."""

import json
import math
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from moebius.config import ObserveConfig
from moebius.observe import apart, wandb
from moebius.observe.json_lines import EVENTS, METRICS
from moebius.observe.line_file import read_lines
from moebius.observe.registry import sinks_for
from moebius.observe.sink import Sample, Sinks
from moebius.observe.tags import tags
from moebius.parallel.process import Process
from tests.emulator import wait_until
from tests.files import REPOSITORY
from tests.observe.broken import silent_server
from tests.observe.made_up import Happening, metrics_of
from tests.observe.wandb_file import records

OFFLINE = ObserveConfig(wandb="offline", wandb_project="a-project", tensorboard=False)
ONLINE = replace(OFFLINE, wandb="online")
needs_library = pytest.mark.skipif(find_spec("wandb") is None, reason="needs the library wandb")


@dataclass
class Fired:
    """An alarm that has fired, or one that is over."""

    step: int
    over: bool = False

    def to_json(self) -> dict[str, Any]:
        return {"event": "alarm", "rule": "cv", "step": self.step, "over": self.over}

    def __str__(self) -> str:
        return f"step {self.step}: cv of layer 1 is 0.9"


def opened(folder: Path, config: ObserveConfig, step: int = 0) -> Sinks:
    """Return the sinks of a run in the folder, to be opened."""
    folder.mkdir(exist_ok=True)
    (folder / "config.toml").write_text('[model]\ndim = 32\n[train]\nname = "r"\n')
    return Sinks(sinks_for(config, Process()), folder, step)


def notes(folder: Path) -> list[str]:
    return [line["text"] for line in read_lines(folder / EVENTS) if line["event"] == "sink"]


def history(folder: Path) -> list[dict[str, Any]]:
    """Return the rows that were logged, in order."""
    return [
        {"/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in records(folder)
        if record.WhichOneof("record_type") == "history"
    ]


def of_kind(folder: Path, kind: str) -> list[Any]:
    found = [record for record in records(folder) if record.WhichOneof("record_type") == kind]
    return [getattr(record, kind) for record in found]


@needs_library
@pytest.mark.heavy
def test_a_run_that_is_renamed_lacks_tables_and_leaves_nothing_behind(tmp_path: Path):
    run, renamed = tmp_path / "my-run", tmp_path / "renamed"
    with opened(run, OFFLINE) as sinks:
        sinks.write(metrics_of(step=1))
        wait_until(lambda: bool(list(run.glob("wandb/*run-*/*.wandb"))), 120)
        run.rename(renamed)
        sinks.write(metrics_of(step=2))
        sinks.event(Fired(2))
    assert not run.exists()
    assert [row["step"] for row in history(renamed)] == [1, 2]
    assert notes(renamed) == [f"{run} has been moved: tables are left out"]


@needs_library
def test_everything_is_in_the_file_that_the_library_writes(tmp_path: Path):
    run = tmp_path / "my-run"
    with opened(run, OFFLINE) as sinks:
        sinks.write(metrics_of(step=10, loss=3.0))
        sinks.event(Fired(10))
        sinks.event(Fired(12, over=True))
        sinks.write(metrics_of(step=20, loss=math.nan, val_loss=2.5))
        sinks.sample(Sample(20, "def ", "def f():\n"))
    assert notes(run) == []
    (begun,) = of_kind(run, "run")
    identity = (run / "wandb" / wandb.ID).read_text().strip()
    assert (begun.run_id, begun.project, begun.display_name) == (identity, "a-project", "my-run")
    config = {item.key: json.loads(item.value_json) for item in begun.config.update}
    assert config["model"] == {"dim": 32} and config["train"] == {"name": "r"}
    first, second, texts = history(run)
    plain = {name: value for name, value in first.items() if "expert_load" not in name}
    assert plain.items() >= tags(metrics_of(step=10, loss=3.0)).items() and plain["step"] == 10
    assert first["expert_load/00/values"] == [30, 40, 50]
    assert first["expert_load/00/bins"] == [0, 1, 2, 3] and "expert_load/01/values" not in first
    assert (second["step"], second["1_loss/val_loss"], second["6_events/cv"]) == (20, 2.5, 2)
    assert math.isnan(second["1_loss/loss"])
    assert (texts["step"], texts["samples/nrows"], texts["events/nrows"]) == (20, 1, 2)
    tables = sorted((run / "wandb").glob("*run-*/files/media/table/*.json"))
    values = {path.name.split("_")[0]: json.loads(path.read_text())["data"] for path in tables}
    assert values["samples"] == [[20, "def ", "def f():\n"]]
    assert values["events"][0] == [10, "cv", "step 10: cv of layer 1 is 0.9"]
    (alert,) = of_kind(run, "alert")
    assert (alert.title, alert.text, alert.level) == ("cv alarm", str(Fired(10)), "WARN")
    axes = {metric.glob_name: metric.step_metric for metric in of_kind(run, "metric")}
    assert axes["*"] == "step"
    (ended,) = of_kind(run, "exit")
    assert ended.exit_code == 0


@needs_library
@pytest.mark.heavy
def test_a_run_goes_on_as_the_same_and_a_branch_is_another_one(tmp_path: Path):
    for step in (0, 20):
        with opened(tmp_path / "run", OFFLINE, step) as sinks:
            sinks.write(metrics_of(step=step + 10))
            sinks.sample(Sample(step + 10, "", f"text {step}"))
    with opened(tmp_path / "branch", OFFLINE) as sinks:
        sinks.write(metrics_of(step=10))
    first, second = of_kind(tmp_path / "run", "run")
    (branch,) = of_kind(tmp_path / "branch", "run")
    assert first.run_id == second.run_id != branch.run_id
    assert [row["step"] for row in history(tmp_path / "run") if "1_loss/loss" in row] == [10, 30]
    assert history(tmp_path / "run")[-1]["samples/nrows"] == 2


@needs_library
@pytest.mark.heavy
def test_after_a_roll_back_the_steps_are_there_twice(tmp_path: Path):
    with opened(tmp_path, OFFLINE) as sinks:
        for step in (1, 2, 3):
            sinks.write(metrics_of(step=step))
        time.sleep(0.5)  # so that they do not wait any more, when they would be taken back
        sinks.rewind(1)
        sinks.write(metrics_of(step=2))
    assert [row["step"] for row in history(tmp_path)] == [1, 2, 3, 2]


@needs_library
@pytest.mark.heavy
def test_more_experts_than_a_histogram_has_bins_share_them(tmp_path: Path):
    step = metrics_of(step=1)
    layer = replace(step.layers[0], tokens_per_expert=list(range(1_001)))
    with opened(tmp_path, OFFLINE) as sinks:
        sinks.write(replace(step, layers=[layer]))
    (row,) = history(tmp_path)
    values, edges = row["expert_load/00/values"], row["expert_load/00/bins"]
    assert len(values) == 501 and edges[:3] == [0, 2, 4] and edges[-2:] == [1000, 1001]
    assert values[:2] == [1, 5] and values[-1] == 1000 and sum(values) == 500_500


@needs_library
@pytest.mark.heavy
@pytest.mark.parametrize("is_gone", [True, False])
def test_a_server_that_does_not_answer_leaves_the_run_offline(
    tmp_path: Path, is_gone: bool, monkeypatch
):
    monkeypatch.setattr(wandb, "INIT_SECONDS", 2.0)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    with silent_server() as address:
        monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9" if is_gone else address)
        start = time.monotonic()
        with opened(tmp_path, ONLINE) as sinks:
            for step in (1, 2):
                sinks.write(metrics_of(step=step))
            assert time.monotonic() - start < 1.0
    (note,) = notes(tmp_path)
    assert f"; written offline, into {tmp_path}/wandb, which `wandb sync` uploads" in note
    assert [row["step"] for row in history(tmp_path)] == [1, 2]
    assert [line["step"] for line in read_lines(tmp_path / METRICS)] == [1, 2]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in files if b"0" * 40 in path.read_bytes()]


@needs_library
@pytest.mark.heavy
def test_without_a_key_the_run_is_offline_and_nobody_is_asked_for_one(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with opened(tmp_path / "run", ONLINE) as sinks:
        sinks.write(metrics_of(step=1))
    (note,) = notes(tmp_path / "run")
    assert "wandb login" in note and "written offline" in note
    assert [row["step"] for row in history(tmp_path / "run")] == [1]


KILLED = """
import os, signal, sys, time
from pathlib import Path
from tests.observe.test_wandb import OFFLINE, opened
from tests.observe.made_up import metrics_of
with opened(Path(sys.argv[1]), OFFLINE) as sinks:
    sinks.write(metrics_of(step=1))
    while not list(Path(sys.argv[1]).glob("wandb/*run-*/*.wandb")):
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@needs_library
@pytest.mark.heavy
def test_a_run_that_is_killed_has_failed_and_leaves_no_process(tmp_path: Path):
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path], cwd=REPOSITORY, check=False)
    assert done.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 60
    while not of_kind(tmp_path, "exit") and time.monotonic() < deadline:
        time.sleep(0.2)
    (ended,) = of_kind(tmp_path, "exit")
    assert ended.exit_code == 1
    assert [row["step"] for row in history(tmp_path)] == [1]


ODD = {
    "ends": ("import sys; sys.exit('it is broken')", "it is broken; the run goes on without it"),
    "raises": ("raise OSError('no space')", "OSError: no space; the run goes on without it"),
    "never ends": (
        "import sys, time; sys.stdin.read(); time.sleep(60)",
        "the upload was not over 1 s after the end; `wandb sync",
    ),
    "never reads": ("import time; time.sleep(60)", "still busy 2 s after the end; it lacks"),
}


@pytest.mark.parametrize("kind", ODD)
def test_a_process_that_is_broken_says_so_once_and_holds_nothing_up(
    tmp_path: Path, kind: str, monkeypatch
):
    code, expected = ODD[kind]
    monkeypatch.setattr(wandb, "CODE", code)
    monkeypatch.setattr(wandb, "UPLOAD_SECONDS", 0.8)
    monkeypatch.setattr(apart, "CLOSE_SECONDS", 2.0)
    start = time.monotonic()
    with opened(tmp_path, OFFLINE) as sinks:
        for step in range(1, 201):  # more than the system keeps of what nobody reads
            sinks.write(metrics_of(step=step))
            sinks.event(Happening(step))
        assert time.monotonic() - start < 2.0
    assert time.monotonic() - start < 6.0
    (note,) = notes(tmp_path)
    assert expected in note
    assert len(read_lines(tmp_path / METRICS)) == 200


def test_signals_of_a_terminal_do_not_reach_the_process(tmp_path: Path, monkeypatch):
    code = (
        "import os, sys; print(os.getpgid(0) != os.getpgid(os.getppid()), flush=True); "
        "sys.stdin.read()"
    )
    monkeypatch.setattr(wandb, "CODE", code)
    with opened(tmp_path, OFFLINE) as sinks:
        sinks.write(metrics_of(step=1))
    assert notes(tmp_path) == ["True"]
