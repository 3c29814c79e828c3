"""Train recipes for mixtures of experts and their dense twin on a fair field, and compare them.

    python bench/field.py field
    python bench/recipes.py train field --gpus 2 --minutes 9
    python bench/recipes.py table

`train` takes up the queue where its results end (`bench/results/recipes.jsonl`), begins no recipe
after the minutes, and adds a line for each that is done. Every recipe trains the same 12 layers of
width 512 on the same sequences at a constant learning rate. At several numbers of tokens a branch
lets the rate decay to zero, so that a recipe is compared at several lengths for little more than
the price of the longest. The held-out text is that of whole packages.

`table` compares with the dense twin at its own best learning rate: bits per byte at equal tokens,
the speed ratio, and bits per byte when both have trained equally long: the mixture's results are
interpolated over the logarithm of its tokens at the twin's tokens times the speed ratio. Speeds
are only compared between runs on the same kind of GPU.
"""

import argparse
import bisect
import json
import math
import os
import queue
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from flags import layered

from moebius.observe.json_lines import METRICS
from moebius.observe.line_file import read_lines

RESULTS = Path(__file__).parent / "results" / "recipes.jsonl"

BATCH_SIZE, SEQ_LEN = 64, 1024
STEPS = {610: 488, 1220: 976}
"""Steps at which a decay ends, and at which it begins, on a branch."""
LAST, LAST_DECAY = 1830, 1464
"""The same of the run itself: 120M tokens. Checkpoints are 488 steps apart."""
TWIN = "dense twin"

COMMON = {
    "model.num_layers": 12,
    "model.dim": 512,
    "model.num_heads": 8,
    "model.num_kv_heads": 8,
    "model.vocab_size": 16384,
    "train.seq_len": SEQ_LEN,
    "train.batch_size": BATCH_SIZE,
    "train.micro_batch_size": 0,
    "train.optimizer": "muon",
    "train.dtype": "bfloat16",
    "train.schedule": "wsd",
    "train.min_lr_fraction": 0,
    "train.warmup_steps": 60,
    "train.steps": LAST,
    "train.decay_fraction": (LAST - LAST_DECAY) / LAST,
    "train.checkpoint_every": 488,
    "train.keep_last": 0,
    "train.eval_every": 122,
    "train.eval_tokens": 1_000_000,
    "data.errors": "skip",
    "parallel.compile": "auto",
    "observe.tensorboard": "false",
}
DENSE = {"model.num_experts": 0, "model.base_expansion": 3}
MIXTURE = {
    "model.num_experts": 32,
    "model.moe_min_expansion": 0.75,
    "model.moe_max_expansion": 0.75,
    "model.router_top_k": 4,
    "model.router_score": "sigmoid",
    "model.router_bias_rate": 0.001,
    "model.aux_loss_coeff": 0.001,
}


def mixture(**changes: Any) -> dict[str, Any]:
    """Return the mixture's settings with changes: `lr`, or fields of the model section."""
    rate = {"train.lr": changes.pop("lr", 6e-3)}
    return {**MIXTURE, **rate, **{f"model.{name}": value for name, value in changes.items()}}


QUEUE: dict[str, dict[str, Any]] = {
    f"{TWIN}, rate 6e-3": {**DENSE, "train.lr": 6e-3},
    "32 x 0.75, top-4, rate 6e-3": mixture(),
    "64 x 0.75, top-4": mixture(num_experts=64),
    "32 x 0.75, top-4, rate 4e-3": mixture(lr=4e-3),
    f"{TWIN}, rate 8e-3": {**DENSE, "train.lr": 8e-3},
    "128 x 0.75, top-4": mixture(num_experts=128),
    "32 x 0.75, top-4, rate 8e-3": mixture(lr=8e-3),
    "32 x 0.75, top-4, balance over the global batch": mixture(aux_loss_scope="global_batch"),
    "32 x 0.75, top-4, softmax scores": mixture(router_score="softmax"),
    "32 x 0.75, top-4, balance 0.01": mixture(aux_loss_coeff=0.01),
    "32 x 1.5, top-2": mixture(router_top_k=2, moe_min_expansion=1.5, moe_max_expansion=1.5),
    "half a shared expert + 32 x 0.75, top-3": mixture(base_expansion=0.75, router_top_k=3),
    "32 x 0.75, top-4, QK norm": mixture(qk_norm="true"),
    f"{TWIN}, rate 6e-3, QK norm": {**DENSE, "train.lr": 6e-3, "model.qk_norm": "true"},
    "32 x 0.75, top-4, 4 heads of 128": mixture(num_heads=4, num_kv_heads=4),
    "64 x 0.375, top-8": mixture(
        num_experts=64, router_top_k=8, moe_min_expansion=0.375, moe_max_expansion=0.375
    ),
    "32 x 0.75, top-4, gates times 2": mixture(gate_scale=2),
    f"{TWIN}, rate 4e-3": {**DENSE, "train.lr": 4e-3},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("task", choices=["train", "table"])
    parser.add_argument("field", type=Path, nargs="?", help="what bench/field.py made")
    parser.add_argument("--gpus", type=int, default=1, help="recipes trained at the same time")
    parser.add_argument("--minutes", type=float, default=9, help="begin no recipe after these")
    parser.add_argument("--only", default="", help="recipes with this in their names")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options, further = parser.parse_known_args()
    if options.task == "train":
        train_queue(options, further)
    print_table(read_results(options.results))


def train_queue(options: argparse.Namespace, further: list[str]) -> None:
    """Train what has no result yet. further: flags for every run, over the recipe's own."""
    done = {(line["name"], line["seed"]) for line in read_results(options.results)}
    names = [name for name in QUEUE if options.only in name and (name, options.seed) not in done]
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
    for name in names:
        waiting.put(name)
    end = time.monotonic() + 60 * options.minutes
    options.results.parent.mkdir(parents=True, exist_ok=True)
    common = [*words(COMMON), "--data.source", str(options.field / "train")]
    run_moebius(["data", "tiny", *layered(common, further)], gpu=0)

    def work(gpu: int) -> None:
        while time.monotonic() < end:
            try:
                name = waiting.get_nowait()
            except queue.Empty:  # another thread may have taken the last one a moment ago
                return
            flags = layered(common, words({**QUEUE[name], "train.seed": options.seed}), further)
            result = train_recipe(flags, options.field / "held_out", gpu)
            line = json.dumps({"name": name, "seed": options.seed, **result})
            with options.results.open("a") as file:
                file.write(line + "\n")
            print(line, flush=True)

    threads = [threading.Thread(target=work, args=(gpu,)) for gpu in range(options.gpus)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def train_recipe(flags: list[str], held_out: Path, gpu: int) -> dict[str, Any]:
    """Train one recipe with its branches, and return its figures."""
    out = Path(tempfile.mkdtemp(prefix="recipe-"))
    run_moebius(["train", "tiny", *flags, f"--train.out={out}", "--train.name=run"], gpu)
    bits = {}
    for steps, begin in STEPS.items():
        decay = ["--train.steps", str(steps), "--train.decay_fraction", str(1 - begin / steps)]
        branch, run = f"to-{steps}", str(out / "run")
        run_moebius(["branch", run, "--step", str(begin), "--name", branch, *decay], gpu)
        bits[steps] = held_out_bits(out / branch, held_out, gpu)
    bits[LAST] = held_out_bits(out / "run", held_out, gpu)
    metrics = read_lines(out / "run" / METRICS)
    shutil.rmtree(out)
    return {
        "bits_per_byte": {
            str(steps * BATCH_SIZE * SEQ_LEN): bits[steps] for steps in sorted(bits)
        },
        "own_held_out": metrics[-1]["val_bpb"],
        "tokens_per_second": statistics.median(line["tokens_per_second"] for line in metrics[3:]),
        "worst_cv": statistics.fmean(max(line["cv"], default=0.0) for line in metrics[-5:]),
        "dead_experts": sum(metrics[-1]["dead_experts"]),
        "memory_gb": metrics[-1]["memory_gb"],
        "gpu": gpu_name(gpu),
        "date": time.strftime("%Y-%m-%d"),
    }


def held_out_bits(run: Path, held_out: Path, gpu: int) -> float:
    """Return the bits per byte of a run's newest checkpoint on the held-out packages."""
    command = ["evaluate", str(run), "--source", str(held_out), "--tokens", "1000000", "--json"]
    result = json.loads(run_moebius(command, gpu))
    return result["text"]["total"]["bits_per_byte"]["value"]


def run_moebius(arguments: list[str], gpu: int) -> str:
    """Run a command of Moebius on one GPU, return what it prints, and exit if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "moebius", *arguments],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": str(gpu)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        print(f"moebius {' '.join(arguments)}\n{done.stderr[-3000:]}", file=sys.stderr, flush=True)
        os._exit(1)  # from any thread
    return done.stdout


def words(settings: dict[str, Any]) -> list[str]:
    return [f"--{name}={value}" for name, value in settings.items()]


def gpu_name(gpu: int) -> str:
    import torch

    return torch.cuda.get_device_name(gpu) if torch.cuda.is_available() else "CPU"


def read_results(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def print_table(results: Iterable[dict[str, Any]]) -> None:
    """Print every recipe beside the best dense twin of the same seed."""
    results = list(results)
    twins = [line for line in results if line["name"].startswith(TWIN)]
    if not twins:
        print("no result of the dense twin yet")
        return
    print("bits per byte of held-out packages, and the difference from the best twin")
    print("| recipe | seed | 40M | 80M | 120M | speed | by the clock | CV | dead |")
    print("|---|---|---|---|---|---|---|---|---|")
    for line in sorted(results, key=final_bits):
        twin = min(
            (each for each in twins if each["seed"] == line["seed"]), key=final_bits, default=None
        )
        print(f"| {' | '.join(cells(line, twin))} |")


def cells(line: dict[str, Any], twin: dict[str, Any] | None) -> list[str]:
    """Return the cells of a recipe's row."""
    row = [line["name"], str(line["seed"])]
    own, theirs = line["bits_per_byte"], twin["bits_per_byte"] if twin else {}
    for tokens, bits in own.items():
        row.append(
            f"{bits:.4f}" + (f" ({bits - theirs[tokens]:+.4f})" if tokens in theirs else "")
        )
    speed = clock = ""
    if twin and twin["gpu"] == line["gpu"]:
        ratio = line["tokens_per_second"] / twin["tokens_per_second"]
        tokens = max(map(int, theirs))
        speed = f"{ratio:.2f}"
        clock = f"{interpolated(own, tokens * ratio) - theirs[str(tokens)]:+.4f}"
    return [*row, speed, clock, f"{line['worst_cv']:.2f}", str(line["dead_experts"])]


def interpolated(bits_at: dict[str, float], tokens: float) -> float:
    """Return bits per byte at a number of tokens: straight over its logarithm, also beyond."""
    points = sorted((math.log(int(at)), bits) for at, bits in bits_at.items())
    x = math.log(tokens)
    upper = bisect.bisect([point[0] for point in points], x)
    upper = min(max(1, upper), len(points) - 1)
    (x0, y0), (x1, y1) = points[upper - 1], points[upper]
    return y0 + (y1 - y0) * (x - x0) / (x1 - x0)


def final_bits(line: dict[str, Any]) -> float:
    """Return a recipe's bits per byte after the most tokens."""
    return list(line["bits_per_byte"].values())[-1]


if __name__ == "__main__":
    main()
