"""The tables of the founding document (docs/founding.md), measured on this device, its own figures beside ours.

    python bench/founding_tables.py                       everything, in six to eight minutes on an H100
    python bench/founding_tables.py --quick --layers 6    fewer layers, rounds and steps
    python bench/founding_tables.py --only gqa experts    some tables
    python bench/founding_tables.py --device cpu          tiny models: shows that it runs, not what a GPU does

Prints markdown. Flags --section.key value go to every model. The document names neither its device nor its batch: compare
ratios, not times. Models are presets with the changes given beside them, without document masking. Contenders take turns
and have one micro-batch, the largest that fits for all (bench/interleaved_models.py): medians, and the ratios' range.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from collapse import THREE_EXPERTS, cure
from founding_layers import Layer, attention_times, experts_times, gathering_times, padded_rows
from interleaved import Timed
from interleaved_models import TimedModel, models_in_turns

from moebius.config import Config
from moebius.data import prepare
from moebius.observe.balance import variation
from moebius.profile.ceilings import describe
from moebius.settings import read_config
from moebius.train.evaluate import evaluate
from moebius.train.session import build, choose_device, cut
from moebius.train.step import train_step

# docs/founding.md: 1. Performance Bottleneck Analysis, 2. MTP, 4. Expert Load Balancing, Performance Summary
DOCUMENT_MS = {"with base MLP": 159.1, "without": 77.3, "with MTP": 103.51, "without MTP": 78.77}
DOCUMENT_LOADS, DOCUMENT_CV, DOCUMENT_GOAL = "32.6 58.1 9.4", 0.73, "< 0.3"
DOCUMENT_SWITCH = "1.06"
DOCUMENT_SUMMARY = {
    "Original PR-MoE": ("57k", "950-1200"),
    "No Base MLP": ("120k", "~500"),
    "+ Optimized Routing": ("150k+", "~400"),
    "+ No MTP": ("180k+", "~300"),
    "Dense 112M baseline": ("200k", "~250"),
    "standard (its recommendation)": ("150-180k", ""),
}
Contenders = dict[str, tuple[str, list[str]]]  # a preset and what is changed
TOP_1 = ["--model.router_type=softmax_topk", "--model.router_top_k=1"]
NO_BASE, NO_MTP, BALANCED = ["--model.base_expansion=0"], ["--model.use_mtp=false"], ["--model.aux_loss_coeff=0.1"]
SUMMARY: Contenders = {
    "Original PR-MoE": ("pr_moe", []),
    "No Base MLP": ("pr_moe", NO_BASE + TOP_1),
    "+ Optimized Routing": ("pr_moe", NO_BASE + TOP_1 + BALANCED),
    "+ No MTP": ("pr_moe", NO_BASE + TOP_1 + BALANCED + NO_MTP),
    "Dense 112M baseline": ("dense_112m", []),
}
PAIRS: Contenders = {
    "without": ("pr_moe", NO_BASE + TOP_1 + BALANCED + NO_MTP),
    "with base MLP": ("pr_moe", TOP_1 + BALANCED + NO_MTP),
    "switch": ("pr_moe", NO_BASE + BALANCED + NO_MTP + ["--model.router_type=switch"]),
}
RECOMMENDED: Contenders = {"standard (its recommendation)": ("standard", [])}
CURES = {
    "no balancing": cure(),
    "balance loss 0.1": cure(0.1),
    "loss-free bias": cure(0.0, 0.001),
    "switch, capacity 1.25, balance loss 0.1": cure(0.1, router_type="switch"),
}
TINY = [
    *("--model.dim=128", "--model.num_heads=4", "--model.num_kv_heads=1", "--model.num_layers=2", "--model.vocab_size=512"),
    *("--train.batch_size=4", "--train.seq_len=64", "--train.dtype=float32"),
]
TINY_LEARNER = [
    *("--model.dim=64", "--model.num_heads=2", "--model.num_layers=2", "--train.batch_size=4", "--train.seq_len=128"),
    "--train.eval_tokens=5000",
]


@dataclass(frozen=True)
class Size:
    """How much is measured. flags: for every model."""

    device: torch.device
    rounds: int
    learning_steps: int
    has_recommended: bool
    flags: list[str]

    @property
    def is_tiny(self) -> bool:
        return self.device.type != "cuda"


def main() -> None:
    options, flags = _options()
    device = choose_device(options.device)
    size = Size(device, 3 if options.quick else 5, 150 if options.quick else 400, not options.quick, flags)
    if size.is_tiny:
        size = Size(device, 3, 40, False, flags)
    batch = TINY if size.is_tiny else [f"--model.num_layers={options.layers}", "--train.batch_size=16", "--train.seq_len=2048"]
    size.flags[:0] = [*batch, "--train.micro_batch_size=0", f"--train.device={device}", "--data.document_masking=false"]
    print(f"## The founding document's tables\n\n{describe(device)}, torch {torch.__version__}")
    for name, table in TABLES.items():
        if not options.only or name in options.only:
            start = time.perf_counter()
            for line in table(size):
                print(line, flush=True)
            print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr)


def summary(size: Size) -> Iterator[str]:
    """And MTP, which two of its rows are with and without."""
    models = _models(SUMMARY, size)
    yield from _summary_rows("Performance summary", models)
    pair = {"with MTP": models["+ Optimized Routing"], "without MTP": models["+ No MTP"]}
    yield from _pair("MTP", pair, "`pr_moe` without base MLP, top-1, balance loss 0.1")


def base_mlp(size: Size) -> Iterator[str]:
    """And the switch router, beside softmax_topk on the same model."""
    models = _models(PAIRS | (RECOMMENDED if size.has_recommended else {}), size)
    pair = {name: models[name] for name in ("with base MLP", "without")}
    of = "`pr_moe`, top-1, balance loss 0.1, without MTP (the document's 77.3 ms is nearly its 78.77 without MTP)"
    yield from _pair("Base MLP", pair, of)
    yield from _title("Switch router", "the model without base MLP above; over softmax_topk, the document: " + DOCUMENT_SWITCH)
    yield from _table(["router", "step ms", "over softmax_topk"], [
        ["softmax_topk", _ms(models["without"].step), ""],
        ["switch", _ms(models["switch"].step), models["switch"].step.over(models["without"].step)],
    ])  # fmt: skip
    recommended = {name: models[name] for name in RECOMMENDED if name in models}
    if recommended:
        yield from _summary_rows("Its recommendation for speed", recommended)


def gqa(size: Size) -> Iterator[str]:
    """The attention layer whose key-value heads are copied, expanded, or read where they are."""
    config = _config("standard", [], size)
    train, model = config.train, config.model
    shape = f"{train.batch_size} x {train.seq_len} tokens, {model.num_heads} query and {model.num_kv_heads} KV heads"
    yield from _title(
        "GQA", f"the whole attention layer, {shape}; the document's original is repeat_interleave, without figures"
    )
    times = attention_times(config, (train.batch_size, train.seq_len), size.device, size.rounds)
    yield from _layer_rows("key-value heads", times, "native, eager")


def collapse(size: Size) -> Iterator[str]:
    """Three top-1 experts without balancing and with each cure."""
    learner = [*THREE_EXPERTS, *(TINY_LEARNER if size.is_tiny else []), *(flag for flag in size.flags if "--data." in flag)]
    yield from _title(
        "Router collapse and its cures",
        f"`tiny` with three top-1 experts, {size.learning_steps} steps; the layer that is worst over the last five",
    )
    rows = [["the document, without balancing", DOCUMENT_LOADS, f"{DOCUMENT_CV:.2f}, wanted {DOCUMENT_GOAL}", ""]]
    for name, own in CURES.items():
        flags = [*learner, *own, f"--train.device={size.device}", f"--train.steps={size.learning_steps}"]
        rows.append([name, *_learned(read_config("tiny", flags))])
    yield from _table(["", "share of the tokens, %", "CV", "held-out bits per byte"], rows)


def experts(size: Size) -> Iterator[str]:
    """Running routed tokens through one layer's experts."""
    config = _config("standard", [], size)
    model, tokens = config.model, config.train.batch_size * config.train.seq_len
    shape = f"{tokens:,} tokens, top-1 of {model.num_experts} experts of {model.dim} x {model.expert_widths[0]} (SwiGLU)"
    yield from _title("Experts", f"one layer, {shape}, eager; the document's original is one token at a time, without figures")
    yield from _layer_rows("backend", experts_times(model, tokens, size.device, size.rounds), "loop, one GEMM an expert")


def indexing(size: Size) -> Iterator[str]:
    """Collecting each expert's tokens."""
    config = _config("standard", [], size)
    tokens, dim = config.train.batch_size * config.train.seq_len, config.model.dim
    yield from _title("Indexing", f"the rows of {tokens:,} x {dim} that each of 4 experts takes; the document has no figures")
    yield from _layer_rows("", gathering_times(tokens, dim, 4, size.device, size.rounds), "index_select")


def padding(size: Size) -> Iterator[str]:
    """Counted, not timed: nothing here depends on the device."""
    yield from _title(
        "Padding to 16 for FP8",
        "rows that `train.expert_dtype float8` adds to random routing; Moebius's other products take any number of rows",
    )
    cases = [(2048, 4), (2048, 64), (32_768, 3), (32_768, 4), (32_768, 64), (32_768, 256)]
    rows = [(tokens, count, padded_rows(tokens, count)) for tokens, count in cases]
    yield from _table(
        ["tokens", "experts", "rows added", "of the tokens"],
        [[f"{tokens:,}", str(count), f"{added:,}", f"{added / tokens:.2%}"] for tokens, count, added in rows],
    )


TABLES: dict[str, Callable[[Size], Iterator[str]]] = {
    function.__name__: function for function in (summary, base_mlp, gqa, collapse, experts, indexing, padding)
}


def _models(contenders: Contenders, size: Size) -> dict[str, TimedModel]:
    configs = {name: _config(preset, own, size) for name, (preset, own) in contenders.items()}
    return models_in_turns(configs, size.rounds, jobs=1 if size.is_tiny else 3)


def _config(preset: str, own: list[str], size: Size) -> Config:
    return read_config(preset, [*own, *size.flags])


def _summary_rows(title: str, models: dict[str, TimedModel]) -> Iterator[str]:
    config = next(iter(models.values())).config
    tokens = f"{config.train.batch_size} x {config.train.seq_len} tokens"
    yield from _title(title, f"steps of {tokens}, {config.model.num_layers} layers; forward of as many tokens")
    rows = []
    first = next(iter(models.values()))
    for name, model in models.items():
        told, told_ms = DOCUMENT_SUMMARY[name]
        here = _changes(*(SUMMARY | RECOMMENDED)[name])
        if model.step.error:
            rows.append([name, here, told, model.step.error, "", told_ms, "", "", ""])
            continue
        gigabytes = f"{model.step.peak_bytes / 1e9:.1f}" if model.step.peak_bytes else ""
        micro_batch = str(model.config.train.micro_batch_size)
        faster = first.step.over(model.step) if model is not first else ""
        rows.append([name, here, told, _speed(model), faster, told_ms, _ms(model.forward), gigabytes, micro_batch])
    heads = ["configuration", "here", "document", "tokens/s", "times the first", "document", "forward ms", "GB", "micro-batch"]
    yield from _table(heads, rows)


def _pair(title: str, pair: dict[str, TimedModel], of: str) -> Iterator[str]:
    """With and without, and what it costs."""
    yield from _title(title, of)
    (more, slow), (less, fast) = pair.items()
    told = DOCUMENT_MS[more] / DOCUMENT_MS[less]
    rows = [[name, f"{DOCUMENT_MS[name]}", _ms(model.forward), _ms(model.step), _speed(model)] for name, model in pair.items()]
    rows.append(["times", f"{told:.2f}", slow.forward.over(fast.forward), slow.step.over(fast.step), ""])
    yield from _table(["", "document ms", "forward ms", "step ms", "tokens/s"], rows)


def _layer_rows(head: str, times: dict[str, Layer], reference: str) -> Iterator[str]:
    """Forward, and forward with backward, each over the reference's."""
    by = times[reference]
    rows = [
        [name, _ms(forward), forward.over(by.forward), _ms(both), both.over(by.both), _gigabytes(both)]
        for name, (forward, both) in times.items()
    ]
    yield from _table([head, "forward ms", f"times {reference}", "with backward ms", f"times {reference}", "GB more"], rows)


def _learned(config: Config) -> list[str]:
    """Train; shares and CV of the worst layer over the last five steps, and the held-out loss."""
    device = choose_device(config.train.device)
    corpus = prepare(config.data, config.model.vocab_size)
    batches, state = cut(config, corpus), build(config, corpus, device, say=lambda line: None)
    end_of_text = corpus.tokenizer.end_of_text if config.data.document_masking else None
    layers: list[list[torch.Tensor]] = []
    for step in range(config.train.steps):
        tokens_BL = torch.from_numpy(batches.at(step)).to(device)
        layers.append([layer.tokens_per_expert_E for layer in train_step(state, tokens_BL, end_of_text, config.train).stats])
    counts = [sum(layer).tolist() for layer in zip(*layers[-5:], strict=True)]  # pyright: ignore[reportAttributeAccessIssue]
    worst = max(counts, key=variation)
    found = evaluate(state.model, corpus, config, device)
    assert found is not None  # nothing stops it
    shares = " ".join(f"{100 * count / sum(worst):.1f}" for count in worst)
    return [shares, f"{variation(worst):.2f}", f"{found.bits_per_byte:.3f}"]


def _changes(preset: str, flags: Iterable[str]) -> str:
    own = ", ".join(flag.removeprefix("--model.") for flag in flags)
    return f"`{preset}`" + (f", {own}" if own else "")


def _ms(timed: Timed) -> str:
    return timed.error or f"{timed.ms:.2f}"


def _speed(model: TimedModel) -> str:
    return "" if model.step.error else f"{model.tokens_per_second / 1e3:,.1f}k"


def _gigabytes(timed: Timed) -> str:
    return f"{timed.peak_bytes / 1e9:.2f}" if timed.peak_bytes else ""


def _title(title: str, what: str) -> Iterator[str]:
    yield f"\n### {title}\n{what[0].upper()}{what[1:]}.\n"


def _table(heads: list[str], rows: list[list[str]]) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _options() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda (default: %(default)s)")
    parser.add_argument("--layers", type=int, default=24, help="of every model (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and steps, and no `standard`")
    parser.add_argument("--only", nargs="+", choices=TABLES, default=[], metavar="TABLE", help=f"of {', '.join(TABLES)}")
    return parser.parse_known_args()


if __name__ == "__main__":
    main()
