"""Measure the founding document's tables on this device, with its own figures next to ours.

    python bench/founding_tables.py                       everything: six to eight minutes, H100
    python bench/founding_tables.py --quick --layers 6    fewer layers, rounds and steps
    python bench/founding_tables.py --only gqa experts    some tables
    python bench/founding_tables.py --device cpu          tiny models, to see that it runs

Prints Markdown. Flags --section.key value go to every model. The document names neither its device
nor its batch, so compare ratios, not times. Models are presets with the changes that are printed
beside them, without document masking.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator

import founding_quotes as document
import torch
from collapse import THREE_EXPERTS, cure
from flags import layered
from founding_layers import Layer, attention_times, experts_times, gathering_times, padded_rows
from founding_models import Size, base_mlp, configuration, summary
from markdown_tables import gigabytes, milliseconds, table, title

from moebius.config import Config
from moebius.config.files import read_config
from moebius.data import prepare
from moebius.hardware.device import choose_device, describe
from moebius.moe.load import variation
from moebius.train.evaluate import evaluate
from moebius.train.session import build, feed_for
from moebius.train.step import train_step

# The results are in docs/log/founding_tables.md.
CURES = {
    "no balancing": cure(),
    "balance loss 0.1": cure(0.1),
    "loss-free bias": cure(0.0, 0.001),
    "switch, capacity 1.25, balance loss 0.1": cure(0.1, router_type="switch"),
}
LAST_STEPS = 5
"""Number of steps at the end over which the load of the experts is added up."""
TINY = [
    "--model.dim=128",
    "--model.num_heads=4",
    "--model.num_kv_heads=1",
    "--model.num_layers=2",
    "--model.vocab_size=512",
    "--train.batch_size=4",
    "--train.seq_len=64",
    "--train.dtype=float32",
]
TINY_LEARNER = [
    "--model.dim=64",
    "--model.num_heads=2",
    "--model.num_layers=2",
    "--train.batch_size=4",
    "--train.seq_len=128",
    "--train.eval_tokens=5000",
]


def main() -> None:
    """Print the tables that were asked for."""
    options, flags = _options()
    size = _size(options, flags)
    device = f"{describe(size.device)}, torch {torch.__version__}"
    print(f"## The founding document's tables\n\n{device}")
    for name, lines in TABLES.items():
        if not options.only or name in options.only:
            start = time.perf_counter()
            for line in lines(size):
                print(line, flush=True)
            print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr)


def gqa(size: Size) -> Iterator[str]:
    """Yield the attention layer with KV heads that are copied, expanded, or read in place."""
    config = configuration("standard", [], size)
    train, model = config.train, config.model
    yield from title(
        "GQA",
        f"the whole attention layer, {train.batch_size} x {train.seq_len} tokens, "
        f"{model.num_heads} query heads and {model.num_kv_heads} KV heads; the document's "
        "original is repeat_interleave, without figures",
    )
    times = attention_times(config, (train.batch_size, train.seq_len), size.device, size.rounds)
    yield from layer_table("key-value heads", times, "native, eager")


def collapse(size: Size) -> Iterator[str]:
    """Yield the load of three top-1 experts, without balancing and with each cure."""
    yield from title(
        "Router collapse and its cures",
        f"`tiny` with three top-1 experts, {size.learning_steps} steps; the worst layer over the "
        f"last {LAST_STEPS} steps",
    )
    learner = layered(
        THREE_EXPERTS,
        TINY_LEARNER if size.is_tiny else [],
        (flag for flag in size.flags if "--data." in flag),
        [f"--train.device={size.device}", f"--train.steps={size.learning_steps}"],
    )
    goal = f"{document.CV:.2f}, and {document.GOAL} is its goal"
    rows = [["the document, without balancing", document.LOADS, goal, ""]]
    for name, changes in CURES.items():
        rows.append([name, *learned(read_config("tiny", layered(learner, changes)))])
    yield from table(["", "share of the tokens, %", "CV", "held-out bits per byte"], rows)


def experts(size: Size) -> Iterator[str]:
    """Yield how long routed tokens take through the experts of one layer."""
    config = configuration("standard", [], size)
    model, tokens = config.model, config.train.batch_size * config.train.seq_len
    yield from title(
        "Experts",
        f"one layer, {tokens:,} tokens, top-1 of {model.num_experts} experts of {model.dim} x "
        f"{model.expert_widths[0]} (SwiGLU), eager; the document's original is one token at a "
        "time, without figures",
    )
    times = experts_times(model, tokens, size.device, size.rounds)
    yield from layer_table("backend", times, "loop, one GEMM per expert")


def indexing(size: Size) -> Iterator[str]:
    """Yield how long it takes to collect each expert's tokens."""
    config = configuration("standard", [], size)
    tokens, dim = config.train.batch_size * config.train.seq_len, config.model.dim
    yield from title(
        "Indexing",
        f"collecting the rows of {tokens:,} x {dim} that each of 4 experts takes; the document "
        "has no figures",
    )
    times = gathering_times(tokens, dim, 4, size.device, size.rounds)
    yield from layer_table("", times, "index_select")


def padding(size: Size) -> Iterator[str]:
    """Yield how many rows FP8 adds. This is counted, so the device does not matter."""
    yield from title(
        "Padding to 16 for FP8",
        "rows that `train.expert_dtype float8` adds to random routing; Moebius's other products "
        "take any number of rows",
    )
    cases = [(2048, 4), (2048, 64), (32_768, 3), (32_768, 4), (32_768, 64), (32_768, 256)]
    rows = []
    for tokens, num_experts in cases:
        added = padded_rows(tokens, num_experts)
        rows.append([f"{tokens:,}", str(num_experts), f"{added:,}", f"{added / tokens:.2%}"])
    yield from table(["tokens", "experts", "rows added", "of the tokens"], rows)


TABLES: dict[str, Callable[[Size], Iterator[str]]] = {
    function.__name__: function
    for function in (summary, base_mlp, gqa, collapse, experts, indexing, padding)
}


def layer_table(head: str, times: dict[str, Layer], reference: str) -> Iterator[str]:
    """Yield the times of some layers, and how many times as long each takes as the reference."""
    by_forward, by_both = times[reference]
    heads = [
        head,
        "forward ms",
        f"times {reference}",
        "with backward ms",
        f"times {reference}",
        "GB more",
    ]
    rows = [
        [
            name,
            milliseconds(forward),
            forward.over(by_forward),
            milliseconds(both),
            both.over(by_both),
            gigabytes(both),
        ]
        for name, (forward, both) in times.items()
    ]
    yield from table(heads, rows)


def learned(config: Config) -> list[str]:
    """Train, and return how the worst layer's experts are loaded and what the model has learned.

    The first two values are the shares of the tokens and their CV over the last steps. The third
    is the held-out loss in bits per byte.
    """
    device = choose_device(config.train.device)
    corpus = prepare(config.data, config.model.vocab_size)
    feed = feed_for(config, corpus, device)
    state = build(config, corpus, device, say=lambda line: None)
    loads: list[torch.Tensor] = []
    for _ in range(config.train.steps):
        tokens_BL = feed.at(state.sequences)
        stats = train_step(state, tokens_BL, feed.separator, config.train).stats
        loads.append(torch.stack([layer.tokens_per_expert_E for layer in stats]))
    counts_ME = torch.stack(loads[-LAST_STEPS:]).sum(dim=0)
    worst = max(counts_ME.round().long().tolist(), key=variation)
    evaluation = evaluate(state.model, corpus, config, device)
    assert evaluation is not None  # only a signal would stop it
    shares = " ".join(f"{100 * count / sum(worst):.1f}" for count in worst)
    return [shares, f"{variation(worst):.2f}", f"{evaluation.bits_per_byte:.3f}"]


def _size(options: argparse.Namespace, flags: list[str]) -> Size:
    """Return how much is measured. Without a GPU models are tiny."""
    device = choose_device(options.device)
    own = [
        "--train.micro_batch_size=0",
        f"--train.device={device}",
        "--data.document_masking=false",
    ]
    if device.type != "cuda":
        return Size(device, 3, 40, False, layered(TINY, own, flags))
    batch = [
        f"--model.num_layers={options.layers}",
        "--train.batch_size=16",
        "--train.seq_len=2048",
    ]
    rounds, learning_steps = (3, 150) if options.quick else (5, 400)
    return Size(device, rounds, learning_steps, not options.quick, layered(batch, own, flags))


def _options() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda (default: %(default)s)")
    parser.add_argument(
        "--layers",
        type=int,
        default=24,
        help="number of layers of every model (default: %(default)s)",
    )
    parser.add_argument(
        "--quick", action="store_true", help="fewer rounds and steps, and no `standard`"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=TABLES,
        default=[],
        metavar="TABLE",
        help=f"print some tables: {', '.join(TABLES)}",
    )
    return parser.parse_known_args()


if __name__ == "__main__":
    main()
