"""Measure what Moebius costs beside training as the work grows.

    python bench/growth.py                    all rows; a few minutes on two cores
    python bench/growth.py --only alarms      the rows whose name has these letters

Every figure is measured in a process of its own. The exponent is the slope of the cost over the
size in logarithms, from the smallest to the largest size: 0 for a constant cost, 1 for a linear
and 2 for a quadratic one.

To add a row, write a function from a size to its costs, and add it to `ROWS`.
"""

import argparse
import json
import math
import multiprocessing
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import growth_text
import numpy as np
import torch
from markdown_tables import table

from moebius.config import ObserveConfig
from moebius.config.files import read_config
from moebius.cost.memory import memory
from moebius.hardware.devices import device_named
from moebius.hardware.memory import PeakMemory
from moebius.model.attention import attend_expanded
from moebius.model.transformer import seeded
from moebius.moe.load import dead_experts, variation
from moebius.observe.alarms import Alarms
from moebius.observe.expert_counts import FOLDER as COUNTS_FOLDER
from moebius.observe.expert_counts import GROUP
from moebius.observe.json_lines import METRICS, JsonLines
from moebius.observe.metrics import LayerMetrics, StepMetrics
from moebius.observe.registry import sinks_for
from moebius.observe.sink import Sinks
from moebius.observe.tensorboard import FOLDER as BOARD_FOLDER
from moebius.parallel.process import Process
from moebius.plan.recommend import plan
from moebius.train import checkpoint
from moebius.train.log import AnsweredAlarm, lines_of

Costs = dict[str, float]
"""Figures by their names, which end with their units."""
LAYERS, LOG_EVERY = 24, 10
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Row:
    """Something that grows, and what it costs."""

    name: str
    unit: str
    """What the sizes count."""
    sizes: tuple[int, ...]
    measure: Callable[[int], Costs]


def alarms(num_experts: int) -> Costs:
    """Look at steps in which all but 8 experts of each layer are dead."""
    counts = [100_000] * 8 + [0] * (num_experts - 8)
    rules, seconds, answered, texts = Alarms(ObserveConfig()), [], [], []
    for step in range(LOG_EVERY, 501, LOG_EVERY):
        metrics = _step(step, [counts] * LAYERS)
        start = time.process_time()
        fired = rules.look(metrics)
        answered = [AnsweredAlarm(alarm, "") for alarm in fired] or answered
        texts = [json.dumps(event.to_json()) for event in answered] if fired else texts
        seconds.append(time.process_time() - start)
    return {
        "look and record, ms": 1e3 * sum(seconds) / len(seconds),
        "events": len(answered),
        "bytes of events, kB": sum(map(len, texts)) / 1e3,
        "lines on the terminal": len(lines_of(answered)),
    }


def resuming(num_lines: int) -> Costs:
    """Open the metrics of a run that goes on shortly before its last logged step."""
    with tempfile.TemporaryDirectory() as folder:
        generator = np.random.default_rng(0)
        counts = generator.poisson(1_000, (LAYERS, 64)).tolist()
        line = _step(1, counts).to_json()
        text = json.dumps(line)[len('{"step": 1') :]
        path = Path(folder) / METRICS
        with path.open("w") as file:
            file.writelines(f'{{"step": {step}{text}\n' for step in range(1, num_lines + 1))
        costs: Costs = {"file, MB": path.stat().st_size / 1e6}
        sink, start = JsonLines(), time.process_time()
        sink.open(path.parent, num_lines - 5)
        costs["CPU s"] = time.process_time() - start
        sink.close()
        tracemalloc.start()
        sink.open(path.parent, num_lines - 10)
        costs["memory, MB"] = tracemalloc.get_traced_memory()[1] / 1e6
        sink.close()
    return costs


def logging(num_experts: int) -> Costs:
    """Log steps of a balanced run as if it were at step 50,000."""
    generator = np.random.default_rng(0)
    shares_LE = generator.lognormal(0, 0.3, (LAYERS, num_experts))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with Sinks(sinks_for(ObserveConfig(), Process()), folder, 0) as sinks:
            for number in range(GROUP):
                counts = generator.poisson(2048 * shares_LE / shares_LE.mean()).tolist()
                sinks.write(_step(50_000 + LOG_EVERY * number, counts, generator))
        sizes = {
            "metrics.jsonl": _bytes(folder / METRICS),
            "counts": _bytes(folder / COUNTS_FOLDER),
            "TensorBoard": _bytes(folder / BOARD_FOLDER),
        }
    per_step = {f"{name}, kB a step": size / GROUP / 1e3 for name, size in sizes.items()}
    return per_step | {"100,000 steps, GB": sum(sizes.values()) / GROUP * 1e5 / 1e9}


def attention(length: int) -> Costs:
    """Attend inside documents of 800 tokens on average, forward and backward, in one layer."""
    q, k, v = (torch.randn(1, heads, length, 64, requires_grad=True) for heads in (8, 2, 2))
    document_BS = (torch.rand(1, length) < 1 / 800).long().cumsum(dim=1)
    peak = PeakMemory(CPU)
    before, start = peak.bytes(), time.process_time()
    attend_expanded(q, k, v, document_BS).sum().backward()
    return {
        "CPU s": time.process_time() - start,
        "memory, MB": (peak.bytes() - before) / 1e6,
    }


def estimate(length: int) -> Costs:
    """Train the preset `tiny` on one long sequence with documents, without a compiler."""
    flags = [f"--train.seq_len={length}", "--train.batch_size=1", "--train.micro_batch_size=1"]
    config = read_config("tiny", [*flags, "--parallel.loss_chunks=8"])
    model = seeded(0, config.model)
    tokens_BL = torch.randint(1, config.model.vocab_size, (1, length + 1))
    tokens_BL[torch.rand(tokens_BL.shape) < 1 / 800] = 0
    model.loss(tokens_BL[:, :300], 0).total.backward()  # allocates the gradients and the libraries
    needed = memory(config, 4, False, experts="loop", attention="sdpa_expanded")
    peak = PeakMemory(CPU)
    before = peak.bytes()
    model.loss(tokens_BL, 0).total.backward()
    measured = peak.bytes() - before
    parts = needed.parts()
    ours = needed.peak - parts["weights"] - parts["optimizer"] - parts.get("gradients", 0.0)
    return {"measured, MB": measured / 1e6, "estimated, MB": ours / 1e6}


def loading(megabytes: int) -> Costs:
    """Load a checkpoint of three groups, of which each is one file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "step-00000001"
        part = torch.zeros(megabytes * 1_000_000 // 12)
        groups = {name: {"weight": part} for name in ("model", "optimizer", "random")}
        checkpoint.save(path, groups, {"step": 1})
        size = _bytes(path)
        del groups, part
        tracemalloc.start()
        checkpoint.verify(path)
        verifying = tracemalloc.get_traced_memory()[1]
        loaded = checkpoint.load(path)  # Python allocates what files are read into
        peak = tracemalloc.get_traced_memory()[1]
        shared = {
            t.untyped_storage().data_ptr() for group in loaded[0].values() for t in group.values()
        }
    return {
        "loading, times its size": peak / size,
        "blocks of memory": len(shared),
        "verifying, MB": verifying / 1e6,
    }


def planning(num_layers: int) -> Costs:
    """Plan a batch of 25M tokens on 512 GPUs, which leaves a thousand layouts to compare."""
    flags = [f"--model.num_layers={num_layers}", "--train.batch_size=12288", "--model.dim=4096"]
    heads = ["--model.num_heads=32", "--model.num_kv_heads=8", "--train.micro_batch_size=0"]
    config = read_config("standard", [*flags, *heads, "--model.num_experts=64"])
    costs: Costs = {}
    for gpus in (512, 100_000):
        start = time.process_time()
        plan(config, device_named("h100"), gpus)
        costs[f"{gpus:,} GPUs, CPU s"] = time.process_time() - start
    return costs


def mapping(megabytes: int) -> Costs:
    """Read a mapped file of that size, as a run reads its token shards."""
    peak = PeakMemory(CPU)
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(bytes(megabytes * 1_000_000))
        before = peak.bytes()
        shard = np.memmap(file.name, np.uint8, "r")
        total = int(shard.max()) + peak.bytes() - before
    return {"counted as the process's own, MB": total / 1e6}


ROWS = (
    Row("alarms, all but 8 experts dead", "experts in 24 layers", (64, 128, 256), alarms),
    Row("resuming", "logged steps", (12_500, 50_000, 200_000), resuming),
    Row("logging", "experts in 24 layers", (16, 64, 256), logging),
    Row("attention inside documents", "tokens", (2_048, 8_192, 32_768), attention),
    Row("the memory estimate", "tokens", (2_048, 8_192, 32_768), estimate),
    Row("loading a checkpoint", "MB", (60, 240, 960), loading),
    Row("planning 25M tokens", "layers", (24, 48, 96), planning),
    Row("memory_gb", "MB of mapped shards", (50, 200, 800), mapping),
    Row("text: a folder", "files", (6_250, 25_000, 100_000), growth_text.folder_of_files),
    Row("text: preparing", "MB", (20, 60, 120), growth_text.preparing),
    Row(
        "text: documents",
        "rows",
        (500_000, 1_000_000, 2_000_000, 4_000_000),
        growth_text.documents,
    ),
    Row("text: bad rows that are skipped", "rows", (250_000, 1_000_000), growth_text.bad_rows),
    Row("text: one document", "MB", (24, 48, 96), growth_text.huge_document),
    Row("text: opening", "sources of 64 MB", (8, 16, 32), growth_text.opening),
    Row("text: mixing", "sources", (250, 1_000, 4_000), growth_text.mixing),
)
"""What is measured, in the order in which it is printed."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="letters in the names of the rows to measure")
    only: str = parser.parse_args().only
    rows = [row for row in ROWS if only in row.name]
    heads = ["what grows", "cost", "sizes", "figures", "exponent"]
    head, line, *_ = table(heads, [])
    print(f"{head}\n{line}", flush=True)
    for row in rows:
        for printed in list(table(heads, list(_measured(row))))[2:]:
            print(printed, flush=True)


def _measured(row: Row) -> Iterator[list[str]]:
    """Yield a line of the table for each cost of a row."""
    results = [_in_own_process(row, size) for size in row.sizes]
    sizes = ", ".join(f"{size:,}" for size in row.sizes)
    for name in results[0]:
        costs = [result[name] for result in results]
        figures = ", ".join(f"{cost:.3g}" for cost in costs)
        yield [row.name, name, f"{sizes} {row.unit}", figures, _exponent(row.sizes, costs)]


def _in_own_process(row: Row, size: int) -> Costs:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(row.measure, (size,))


def _exponent(sizes: tuple[int, ...], costs: list[float]) -> str:
    """Return the slope in logarithms; a dash for costs that are 0 or less."""
    if min(costs[0], costs[-1]) <= 0:
        return "-"
    return f"{math.log(costs[-1] / costs[0]) / math.log(sizes[-1] / sizes[0]):.2f}"


def _step(
    step: int, counts: list[list[int]], generator: np.random.Generator | None = None
) -> StepMetrics:
    """Return a logged step whose layers' experts took these numbers of tokens."""
    noise = generator or np.random.default_rng(0)

    def layer(tokens: list[int]) -> LayerMetrics:
        return LayerMetrics(
            tokens_per_expert=tokens,
            cv=variation(tokens),
            max_violation=noise.random(),
            dead_experts=dead_experts(tokens),
            experts_per_token=8.0,
            routing_entropy=0.5 + noise.random() / 2,
            mean_gate=noise.random(),
            router_grad_norm=noise.random(),
            balance_loss=1.0 + noise.random(),
            z_loss=noise.random(),
        )

    metrics = StepMetrics(
        step=step,
        tokens=step * 500_000,
        loss=2.0 + noise.random(),
        lr=1e-4,
        grad_norm=noise.random(),
        balance_loss=1.0,
        z_loss=1.0,
        layers=[],
        tokens_per_second=1e6 * noise.random(),
        mfu=noise.random(),
        memory_gb=60.0,
    )
    return replace(metrics, layers=[layer(tokens) for tokens in counts])


def _bytes(path: Path) -> int:
    """Return the size of a file, or of all files in a folder; 0 if there is none."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


if __name__ == "__main__":
    main()
