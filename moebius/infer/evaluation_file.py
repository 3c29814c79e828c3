"""The results of evaluations as JSON files in `evaluations/`, which docs/evaluate.md describes."""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from moebius.data import Tokenizer
from moebius.errors import StorageError
from moebius.infer.evaluable import Evaluable
from moebius.infer.evaluation import Estimate, HeldOut, TextFigures
from moebius.infer.expert_use import LayerUse
from moebius.infer.interval import CONFIDENCE, METHOD
from moebius.infer.seen_text import Change
from moebius.infer.tasks import TaskResult
from moebius.observe.metrics import LayerMetrics
from moebius.train.run_directory import EVALUATIONS
from moebius.train.run_record import write_atomically

VERSION = 1
ROUTING = (
    *("tokens_per_expert", "cv", "dead_experts", "experts_per_token", "routing_entropy"),
    *("mean_gate", "dropped_share", "unrouted_share"),
)
"""Figures of a layer's routing, by their names in metrics.jsonl."""
LONGEST_SLUG = 40

Values = dict[str, Any]


def text_file(model: Evaluable, source: str) -> Path:
    """Return where the result on a text belongs. An empty source is the run's own text."""
    if not source:
        return _file(model, "")
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", source).strip("-.")[-LONGEST_SLUG:]
    checksum = hashlib.sha256(source.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return _file(model, f"-{slug}-{checksum}")


def tasks_file(model: Evaluable) -> Path:
    """Return where the results on the tasks of the harness belong."""
    return _file(model, "-tasks")


def text_values(
    model: Evaluable, result: HeldOut, source: str, own: Mapping[str, Change], dtype: str
) -> Values:
    """Return the result on a text as an object.

    source: name of another text than the run's own, or "".
    own: whether the sources of that text which the run is trained on have changed.
    """
    return {
        **_about(model, dtype, model.config.train.seq_len),
        "text": {
            "source": source or model.config.data.source,
            "is_own": not source,
            "own_sources": dict(own),
            "confidence": CONFIDENCE,
            "method": METHOD,
            "total": _figures(result.total),
            "sources": {name: _figures(figures) for name, figures in result.sources.items()},
        },
        "experts": [_layer(use, list(result.sources), model.tokenizer) for use in result.layers],
    }


def tasks_values(model: Evaluable, results: dict[str, TaskResult], dtype: str) -> Values:
    """Return results on tasks as an object, with those on other tasks that are in the file."""
    values = _about(model, dtype, model.context)
    known: Values = {}
    with suppress(OSError, ValueError, RecursionError, AttributeError, LookupError, TypeError):
        before = json.loads(tasks_file(model).read_text("utf-8"))
        same = ("version", "checkpoint", "dtype")
        if all(before.get(name) == values[name] for name in same):
            known = dict(before["tasks"])
    return {**values, "tasks": known | {name: one._asdict() for name, one in results.items()}}


def write(path: Path, values: Values) -> None:
    """Write a result. Raises StorageError."""
    check_writable(path)
    write_atomically(path, to_json(values) + "\n")


def check_writable(path: Path) -> None:
    """Create the folder of a result. Raises StorageError if it cannot be written."""
    try:
        path.parent.mkdir(exist_ok=True)
        probe = path.with_name(f".{path.name}.partial")
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise StorageError(f"{path.parent}: {error.strerror or error}") from None


def to_json(values: Values) -> str:
    """Return an object as JSON, with null for numbers that are not finite."""
    return json.dumps(_finite(values), allow_nan=False)


def _file(model: Evaluable, suffix: str) -> Path:
    name = "model" if model.step is None else f"step-{model.step:08d}"
    return model.folder / EVALUATIONS / f"{name}{suffix}.json"


def _about(model: Evaluable, dtype: str, seq_len: int) -> Values:
    return {
        "version": VERSION,
        "model": model.folder.resolve().name,
        "step": model.step,
        "checkpoint": model.checkpoint or None,
        "seq_len": seq_len,
        "dtype": dtype,
    }


def _figures(figures: TextFigures) -> Values:
    return {
        "share": figures.share,
        "tokens": figures.tokens,
        "bytes": figures.num_bytes,
        "documents": figures.documents,
        "loss": _estimate(figures.loss),
        "perplexity": _estimate(figures.perplexity),
        "bits_per_byte": figures.bits_per_byte and _estimate(figures.bits_per_byte),
    }


def _estimate(estimate: Estimate) -> Values:
    low, high = estimate.interval or (None, None)
    return {"value": estimate.value, "low": low, "high": high}


def _layer(use: LayerUse, sources: list[str], tokenizer: Tokenizer) -> Values:
    routing = zip(sources, use.by_source, strict=True)
    return {
        "layer": use.layer,
        "sources": {name: _routing(metrics) for name, metrics in routing},
        "top_tokens": [
            [{"text": _text(tokenizer, token.id), **asdict(token)} for token in tokens]
            for tokens in use.top_tokens
        ],
    }


def _routing(metrics: LayerMetrics) -> Values:
    return {name: getattr(metrics, name) for name in ROUTING}


def _text(tokenizer: Tokenizer, token: int) -> str:
    """Return what a token stands for. A part of a character is U+FFFD."""
    return tokenizer.decode([token]) if token < tokenizer.size else ""


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
