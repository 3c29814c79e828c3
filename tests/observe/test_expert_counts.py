"""The tokens per expert of models with many experts survive what metrics.jsonl survives."""

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas
import pytest

from moebius.config import ObserveConfig
from moebius.errors import StorageError
from moebius.observe import expert_counts
from moebius.observe.expert_counts import (
    FOLDER,
    JOURNAL,
    PARTIAL,
    ExpertCounts,
    copy_later_counts,
    counts_of,
    read_counts,
)
from moebius.observe.json_lines import METRICS, JsonLines, last_metrics, read_metrics
from moebius.observe.metrics import StepMetrics
from moebius.observe.registry import sinks_for
from moebius.observe.sink import Sinks
from moebius.parallel.process import Process
from tests.observe.made_up import HEALTHY, large_metrics, metrics_of

LARGE = {
    name: [value[0]] * 24 if isinstance(value, list) else value for name, value in HEALTHY.items()
}
"""The line of a step with 24 layers."""


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expert_counts, "GROUP", 4)


def counts(metrics: StepMetrics) -> list[list[int]]:
    return [layer.tokens_per_expert for layer in metrics.layers]


def write(run: Path, steps: Iterable[int], after: int = 0, seed: int = 0) -> None:
    """Write steps as a run does that continues from a checkpoint, and ends in order."""
    with Sinks([JsonLines(pytest.fail), ExpertCounts(pytest.fail)], run, after) as sinks:
        for step in steps:
            sinks.write(large_metrics(step, seed=seed))


def killed(run: Path, steps: Iterable[int], after: int = 0, seed: int = 0) -> None:
    """Write steps as a process does that is killed after the last one."""
    sink = ExpertCounts(pytest.fail)
    sink.open(run, after)
    for step in steps:
        sink.write(large_metrics(step, seed=seed))


def expect(run: Path, seeds: dict[int, int]) -> None:
    """Compare what is in a run's folder with what was written: the seed of each step."""
    read = dict(read_counts(run))
    assert list(read) == list(seeds)
    for step, seed in seeds.items():
        assert read[step] == counts_of(run, step) == counts(large_metrics(step, seed=seed))


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / FOLDER).iterdir())


def test_a_small_model_keeps_its_counts_in_the_metrics(tmp_path: Path):
    with Sinks([JsonLines(), ExpertCounts()], tmp_path, 0) as sinks:
        sinks.write(metrics_of(step=1))
    assert not (tmp_path / FOLDER).exists()
    assert read_metrics(tmp_path / METRICS) == [metrics_of(step=1)]


def test_pandas_reads_a_row_for_each_step_layer_and_expert(tmp_path: Path):
    write(tmp_path, range(10, 71, 10))
    table = pandas.read_parquet(tmp_path / FOLDER)
    assert list(table.columns) == ["step", "layer", "expert", "tokens"]
    assert len(table) == 7 * 1100 and set(table["layer"]) == {0, 2}
    for step in range(10, 71, 10):
        for layer, expected in enumerate(counts(large_metrics(step))):
            rows = table.query(f"step == {step} and layer == {layer}").sort_values("expert")
            assert rows["tokens"].tolist() == expected


def test_the_metrics_are_read_back_with_their_counts(tmp_path: Path):
    write(tmp_path, range(1, 7))
    read = read_metrics(tmp_path / METRICS)
    assert [metrics.step for metrics in read] == list(range(1, 7))
    for metrics in (*read, last_metrics(tmp_path / METRICS)):
        assert metrics is not None
        expected = large_metrics(metrics.step)
        assert counts(metrics) == counts(expected)
        for layer, written in zip(metrics.layers, expected.layers, strict=True):
            assert layer.cv == pytest.approx(written.cv, rel=1e-5)


@pytest.mark.parametrize("num_steps", range(1, 10))
def test_a_killed_process_loses_nothing(num_steps, tmp_path: Path):
    killed(tmp_path, range(1, num_steps + 1))
    expect(tmp_path, dict.fromkeys(range(1, num_steps + 1), 0))
    write(tmp_path, range(num_steps + 1, 12), after=num_steps)
    expect(tmp_path, dict.fromkeys(range(1, 12), 0))


@pytest.mark.parametrize("after", range(11))
def test_a_resumed_run_has_one_history(after, tmp_path: Path):
    for interrupted in (killed, write):
        run = tmp_path / interrupted.__name__
        run.mkdir()
        interrupted(run, range(1, 11))
        write(run, range(after + 1, 13), after=after, seed=1)
        expect(run, {step: int(step > after) for step in range(1, 13)})


@pytest.mark.parametrize("after", [0, 3, 4, 5, 9])
def test_a_roll_back_leaves_one_history(after, tmp_path: Path):
    sink = ExpertCounts(pytest.fail)
    sink.open(tmp_path, 0)
    for step in range(1, 10):
        sink.write(large_metrics(step))
    sink.rewind(after)
    for step in range(after + 1, 12):
        sink.write(large_metrics(step, seed=1))
    sink.close()
    expect(tmp_path, {step: int(step > after) for step in range(1, 12)})


def test_a_run_that_is_resumed_often_has_no_more_files(tmp_path: Path):
    for step in range(1, 14):
        write(tmp_path, [step], after=step - 1)
    expect(tmp_path, dict.fromkeys(range(1, 14), 0))
    files = [name for name in names(tmp_path) if name.endswith(".parquet")]
    assert len(files) <= 4, files


@pytest.mark.parametrize("moment", ["replace", "open"])
def test_a_kill_between_two_writes_loses_nothing_and_repeats_nothing(
    moment, tmp_path: Path, monkeypatch
):
    """The fourth step becomes a file, and then the journal is emptied."""
    killed(tmp_path, range(1, 4))
    sink = ExpertCounts(pytest.fail)
    sink.open(tmp_path, 3)
    with monkeypatch.context() as patched:

        def die(*_: object) -> None:
            raise KeyboardInterrupt

        if moment == "replace":
            patched.setattr(Path, "replace", die)
        else:
            patched.setattr(expert_counts, "_write_journal", die)
        with pytest.raises(KeyboardInterrupt):
            sink.write(large_metrics(4))
    expect(tmp_path, dict.fromkeys(range(1, 5), 0))
    write(tmp_path, range(5, 7), after=4)
    expect(tmp_path, dict.fromkeys(range(1, 7), 0))


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: bytes(len(data)),
        lambda data: data[: len(data) // 2] + bytes(len(data) - len(data) // 2),
    ],
)
def test_a_damaged_file_is_set_aside_and_named(damage, tmp_path: Path):
    killed(tmp_path, range(1, 11))
    path = tmp_path / FOLDER / "steps-0000000001-0000000004.parquet"
    data = damage(path.read_bytes())
    path.write_bytes(data)
    lines: list[str] = []
    ExpertCounts(lines.append).open(tmp_path, 10)
    beside = path.with_name(f"_{path.name}.damaged")
    assert lines == [f"{path}: damaged, set aside as {beside.name}"]
    assert beside.read_bytes() == data
    expect(tmp_path, dict.fromkeys(range(5, 11), 0))


def test_a_damaged_page_is_noticed_when_its_file_is_read(tmp_path: Path):
    killed(tmp_path, range(1, 5))
    (path,) = (tmp_path / FOLDER).glob("*.parquet")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(data)
    with pytest.raises(OSError):
        list(read_counts(tmp_path))
    lines: list[str] = []
    ExpertCounts(lines.append).open(tmp_path, 4)
    assert "set aside" in lines[0]


def test_damaged_lines_of_the_journal_are_set_aside_and_named(tmp_path: Path):
    killed(tmp_path, range(1, 4))
    journal = tmp_path / FOLDER / JOURNAL
    texts = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(texts[0] + bytes(50) + b"\n" + texts[1] + texts[2][:100])
    lines: list[str] = []
    ExpertCounts(lines.append).open(tmp_path, 3)
    assert lines == [f"{journal}: 1 damaged line moved to {JOURNAL}.damaged (line 2)"]
    expect(tmp_path, {1: 0, 2: 0})


@pytest.mark.parametrize("after", [0, 2, 4, 6, 9])
def test_later_steps_can_be_kept(after, tmp_path: Path):
    for ended, run in ((killed, tmp_path / "killed"), (write, tmp_path / "ended")):
        run.mkdir()
        ended(run, range(1, 10))
        (aside := run / "aside").mkdir()
        assert copy_later_counts(run, after, aside) == (after < 9)
        expect(aside, dict.fromkeys(range(after + 1, 10), 0))
    assert not copy_later_counts(tmp_path, 0, tmp_path)


def test_large_counts_are_rounded_to_less_than_a_hundredth_of_the_mean(tmp_path: Path):
    sink = ExpertCounts(pytest.fail)
    sink.open(tmp_path, 0)
    generator = np.random.default_rng(0)
    written = {}
    for step in range(1, 5):
        counts = [generator.poisson(mean, 600).tolist() for mean in (100, 1_000, 1_000_000)]
        written[step] = counts
        sink.write(metrics_of(step=step, tokens_per_expert=counts))
    read = dict(read_counts(tmp_path))
    assert read.keys() == written.keys()
    for step, counts in written.items():
        assert read[step][0] == counts[0]
        for layer in (1, 2):
            error = np.abs(np.array(read[step][layer]) - counts[layer]).max()
            assert 0 < error < 0.01 * np.mean(counts[layer])


def test_100_000_logged_steps_of_24_layers_of_256_experts_take_less_than_a_gigabyte(
    tmp_path: Path, monkeypatch
):
    """The counts, the metrics and TensorBoard's files together."""
    monkeypatch.setattr(expert_counts, "GROUP", 16)
    num_steps, first = 32, 50_000
    generator = np.random.default_rng(0)
    shares_LE = generator.lognormal(0, 0.5, (24, 256))
    layers = {
        name: [float(value) for value in generator.random(24)]
        for name in ("cv", "max_violation", "routing_entropy", "mean_gate", "router_grad_norm")
    }
    config, process = ObserveConfig(), Process()
    with Sinks(sinks_for(config, process), tmp_path, 0) as sinks:
        for step in range(first, first + 10 * num_steps, 10):
            counts = generator.poisson(4096 * shares_LE / shares_LE.mean()).tolist()
            noise = {name: [v + generator.random() for v in vs] for name, vs in layers.items()}
            line = LARGE | noise | {"tokens_per_expert": counts, "step": step}
            sinks.write(StepMetrics.from_json(line))
    size = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert size / num_steps * 100_000 < 1e9


def test_a_full_disk_is_named_and_stays_the_error_when_the_sink_is_closed(
    tmp_path: Path, monkeypatch
):
    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28), str(tmp_path))

    sink = ExpertCounts(pytest.fail)
    sink.open(tmp_path, 0)
    sink.write(large_metrics(1))
    monkeypatch.setattr(expert_counts, "_append", full)
    with pytest.raises(StorageError, match="No space left on device"):
        sink.write(large_metrics(2))
    sink.close()
    assert PARTIAL not in names(tmp_path)
