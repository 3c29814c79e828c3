"""The founding document's tables of whole models, which bench/founding_tables.py prints.

The models of a table take turns, and all of them have one micro-batch, the largest that fits for
each of them (bench/interleaved_models.py). Figures are medians, and ratios have their range.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import founding_quotes as document
import torch
from flags import layered
from interleaved_models import TimedModel, models_in_turns
from markdown_tables import gigabytes, milliseconds, table, title

from moebius.config import Config
from moebius.config.files import read_config

Contenders = dict[str, tuple[str, list[str]]]
"""A preset and the flags that change it, by name."""
TOP_1 = ["--model.router_type=softmax_topk", "--model.router_top_k=1"]
NO_BASE = ["--model.base_expansion=0"]
NO_MTP = ["--model.use_mtp=false"]
BALANCED = ["--model.aux_loss_coeff=0.1"]
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


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    device: torch.device
    rounds: int
    """Number of times that each contender is timed."""
    learning_steps: int
    """Number of steps of each run that learns."""
    has_recommended: bool
    """Whether the document's recommendation is timed too."""
    flags: list[str]
    """Flags that go to every model."""

    @property
    def is_tiny(self) -> bool:
        """Whether models are tiny, because there is no GPU."""
        return self.device.type != "cuda"


def configuration(preset: str, changes: list[str], size: Size) -> Config:
    """Return a preset with some changes, and with the flags that go to every model."""
    return read_config(preset, layered(changes, size.flags))


def summary(size: Size) -> Iterator[str]:
    """Yield the performance summary, and MTP, which two of its rows are with and without."""
    models = _timed(SUMMARY, size)
    yield from _speed_table("Performance summary", models)
    pair = {"with MTP": models["+ Optimized Routing"], "without MTP": models["+ No MTP"]}
    yield from _pair_table("MTP", pair, "`pr_moe` without base MLP, top-1, balance loss 0.1")


def base_mlp(size: Size) -> Iterator[str]:
    """Yield what the base MLP costs, and what the switch router costs on the same model."""
    models = _timed(PAIRS | (RECOMMENDED if size.has_recommended else {}), size)
    pair = {name: models[name] for name in ("with base MLP", "without")}
    yield from _pair_table(
        "Base MLP",
        pair,
        "`pr_moe`, top-1, balance loss 0.1, without MTP (the document's 77.3 ms is nearly the "
        "78.77 ms that it gives without MTP)",
    )
    yield from title(
        "Switch router",
        "the model without base MLP above; over softmax_topk, the document: " + document.SWITCH,
    )
    softmax, switch = models["without"].step, models["switch"].step
    yield from table(
        ["router", "step ms", "over softmax_topk"],
        [
            ["softmax_topk", milliseconds(softmax), ""],
            ["switch", milliseconds(switch), switch.over(softmax)],
        ],
    )
    recommended = {name: models[name] for name in RECOMMENDED if name in models}
    if recommended:
        yield from _speed_table("Its recommendation for speed", recommended)


def _timed(contenders: Contenders, size: Size) -> dict[str, TimedModel]:
    """Return the times of some models."""
    configs = {
        name: configuration(preset, changes, size)
        for name, (preset, changes) in contenders.items()
    }
    return models_in_turns(configs, size.rounds, jobs=1 if size.is_tiny else 3)


def _speed_table(text: str, models: dict[str, TimedModel]) -> Iterator[str]:
    """Yield the speed of some models next to the speed that the document reports."""
    first = next(iter(models.values()))
    train, layers = first.config.train, first.config.model.num_layers
    yield from title(
        text,
        f"steps of {train.batch_size} x {train.seq_len} tokens, {layers} layers; the forward pass "
        "has as many tokens",
    )
    heads = [
        "configuration",
        "here",
        "document, tokens/s",
        "tokens/s",
        "times the first",
        "document, forward ms",
        "forward ms",
        "GB",
        "micro-batch",
    ]
    yield from table(heads, [_speed_row(name, model, first) for name, model in models.items()])


def _speed_row(name: str, model: TimedModel, first: TimedModel) -> list[str]:
    speed, forward_ms = document.SPEED[name]
    here = _changes(*(SUMMARY | RECOMMENDED)[name])
    if model.step.error:
        return [name, here, speed, model.step.error, "", forward_ms, "", "", ""]
    return [
        name,
        here,
        speed,
        _speed(model),
        first.step.over(model.step) if model is not first else "",
        forward_ms,
        milliseconds(model.forward),
        gigabytes(model.step, 1),
        str(model.config.train.micro_batch_size),
    ]


def _pair_table(text: str, pair: dict[str, TimedModel], what: str) -> Iterator[str]:
    """Yield two models, the one with something and the one without it, and what it costs."""
    yield from title(text, what)
    (with_it, slow), (without_it, fast) = pair.items()
    rows = [
        [
            name,
            f"{document.MS[name]}",
            milliseconds(model.forward),
            milliseconds(model.step),
            _speed(model),
        ]
        for name, model in pair.items()
    ]
    ratio = document.MS[with_it] / document.MS[without_it]
    rows.append(
        ["times", f"{ratio:.2f}", slow.forward.over(fast.forward), slow.step.over(fast.step), ""]
    )
    yield from table(["", "document, ms", "forward ms", "step ms", "tokens/s"], rows)


def _changes(preset: str, flags: Iterable[str]) -> str:
    """Return a preset and its changes, in words."""
    changes = ", ".join(flag.removeprefix("--model.") for flag in flags)
    return f"`{preset}`" + (f", {changes}" if changes else "")


def _speed(model: TimedModel) -> str:
    return "" if model.step.error else f"{model.tokens_per_second / 1e3:,.1f}k"
