"""The model card of an export: README.md, with the figures of the run it comes from."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from moebius.config import Config
from moebius.config.printable import printable_line
from moebius.cost.counts import active_parameters, parameters
from moebius.cost.units import short
from moebius.infer.stock_check import Difference
from moebius.infer.stock_shape import StockShape
from moebius.observe.line_file import read_lines
from moebius.train.origin import Origin as Beginning

CURVE_POINTS = 20
"""Largest number of rows of the table of losses."""
_LOADING = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("PATH OF THIS FOLDER", dtype="{dtype}")
tokenizer = AutoTokenizer.from_pretrained("PATH OF THIS FOLDER")
inputs = tokenizer("{prompt}", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=50)[0]))
```"""
_BFLOAT16 = """\
- In bfloat16, stock routers compute their logits in bfloat16, while training computed them in
  float32. Where experts' scores are close, a token then has other experts than in training (1% to
  2% of the tokens in a layer of a small model). The loss hardly changes, but comparisons belong
  in float32."""


class Origin(NamedTuple):
    """What an export was made from."""

    run: str
    """Name of the run."""
    config: Config
    steps: tuple[int, ...]
    """Steps of the checkpoints of which the weights are the mean."""
    metrics: list[dict[str, Any]]
    """The lines of metrics.jsonl up to the newest of these steps."""
    context: int
    """Tokens in the longest sequences that the run had trained on."""
    begun: Beginning | None = None
    """The model that the run began with; None if its weights were new."""


class Verified(NamedTuple):
    """The comparison of an export with the model that it was made from."""

    random: Difference
    """Difference on random tokens."""
    real: Difference
    """Difference on text."""
    text: str
    """What text that was."""
    version: str
    """Version of the library that loaded it."""


def card(
    origin: Origin, shape: StockShape, verified: Verified, dtype: str, license_name: str
) -> str:
    """Return the contents of README.md."""
    config = origin.config
    front = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "license": license_name or "unknown",
        "tags": ["moebius", *(["mixture-of-experts"] if shape.num_experts else [])],
    }
    # JSON values are YAML values, with every character in quotes.
    header = [f"{key}: {json.dumps(value)}" for key, value in front.items()]
    prompt = "def main():" if config.data.source == "python-stdlib" else "Once upon a time"
    sections = [
        "\n".join(["---", *header, "---"]),
        f"# {_code(origin.run)}\n\n{_beginning(origin.begun)}",
        _table("figures", _figures(origin, shape, dtype)),
        f"## How to load it\n\n{_LOADING.format(dtype=dtype, prompt=prompt)}",
        f"## What to know\n\n{_remarks(origin, shape, dtype)}",
        f"## Verification\n\n{_verification(verified, dtype)}",
        _losses(origin.metrics),
        f"## Data\n\n{_data(config)}",
        f"## License\n\n{_license(license_name)}",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _beginning(begun: Beginning | None) -> str:
    """Return what the model is, and where the run's first weights come from."""
    if begun is None:
        return "A language model that was pretrained with Moebius."
    name = _code(Path(begun.path).name)
    if begun.how == "branched":
        return (
            "A language model that was pretrained with Moebius, in a run that branched from step "
            f"{begun.step:,} of the run {name}."
        )
    how = f", made a mixture of experts ({_code(begun.upcycled)})" if begun.upcycled else ""
    return (
        f"A language model that was trained further with Moebius. Its first weights are those of "
        f"the model {name}{how}, whose license and terms of use may apply. The figures are those "
        "of the further training alone."
    )


def read_metrics(path: Path, step: int) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl up to a step; damaged lines are left out."""
    lines = read_lines(path) if path.is_file() else []
    return [line for line in lines if line["step"] <= step]


def _figures(origin: Origin, shape: StockShape, dtype: str) -> list[tuple[str, str]]:
    model = shape.model
    metrics, last = origin.metrics, next(reversed(origin.metrics), {})
    evaluated = next((line for line in reversed(metrics) if line.get("val_loss")), {})
    newest, num_steps = max(origin.steps), len(origin.steps)
    mean = f" (mean of {num_steps} checkpoints)" if num_steps > 1 else ""
    rows = [
        ("parameters", short(sum(parameters(model).values()))),
        ("active per token", short(active_parameters(model))),
        ("architecture", shape.architecture.name),
        ("weights", dtype),
        ("experts", _experts(shape)),
        ("context", f"{origin.context:,} tokens"),
        ("step", f"{newest:,}{mean}"),
    ]
    if tokens := last.get("tokens"):
        rows.append(("trained on", f"{tokens:,} tokens"))
    if loss := evaluated.get("val_loss"):
        bits = evaluated.get("val_bpb")
        per_byte = f", {bits:.4f} bits per byte" if bits else ""
        at = f"{loss:.4f} nats per token{per_byte} at step {evaluated['step']:,}"
        rows.append(("held-out loss", at))
    return rows


def _experts(shape: StockShape) -> str:
    counts = sorted(set(shape.model.experts_per_layer))
    if not shape.num_experts:
        return "none, a dense model"
    of = " or ".join(str(count) for count in counts)
    return f"{shape.model.router_type}, {shape.top_k} of {of} in each layer"


def _remarks(origin: Origin, shape: StockShape, dtype: str) -> str:
    remarks = [
        "- In training, every text began with the end-of-text token. The tokenizer adds it; tools "
        "that do not call the tokenizer as above have to be told (lm-evaluation-harness: "
        "`add_bos_token=True`).",
        f"- The model has seen no positions beyond {origin.context:,}.",
        "- Batches are padded on the left.",
    ]
    if origin.config.model.use_mtp:
        remarks.append("- The layer for multi-token prediction was left out.")
    if shape.num_experts and dtype != "float32":
        remarks.append(_BFLOAT16)
    return "\n".join(remarks)


def _verification(verified: Verified, dtype: str) -> str:
    rounded = "" if dtype == "float32" else f", both with the weights as rounded to {dtype}"
    return (
        f"Largest difference from the logits of the trained model, relative to the largest logit, "
        f"in float32 with transformers {verified.version}{rounded}:\n\n"
        f"- random tokens: {verified.random}\n- {verified.text}: {verified.real}"
    )


def _losses(metrics: Sequence[dict[str, Any]]) -> str:
    """Return a table of the losses over the run, with at most `CURVE_POINTS` rows."""
    shown = [line for line in metrics if isinstance(line.get("loss"), int | float)]
    if not shown:
        return ""
    every = -(-len(shown) // CURVE_POINTS)
    rows = ["| step | tokens | loss | held-out loss |", "|---|---|---|---|"]
    for line in [*reversed(shown)][::every][::-1]:
        held_out = f"{line['val_loss']:.4f}" if line.get("val_loss") else ""
        rows.append(
            f"| {line['step']:,} | {line.get('tokens', 0):,} | {line['loss']:.4f} | {held_out} |"
        )
    return "## Loss\n\n" + "\n".join(rows)


def _data(config: Config) -> str:
    text = (
        f"Source: {_code(config.data.source)}{_mixture(config.data.weights)}; tokenizer: "
        f"{_code(config.data.tokenizer)}; {config.data.val_fraction:.2%} of the documents were "
        "held out."
    )
    phases = [
        f"- phase {number}, up to {phase.until:,} tokens{_mixture(phase.weights)}"
        for number, phase in enumerate(config.train.phases, start=1)
    ]
    return "\n".join([text, *([""] if phases else []), *phases])


def _mixture(weights: float | tuple[float, ...]) -> str:
    """Return the weights of several sources in words, or "" for equal ones."""
    if not isinstance(weights, tuple):
        return ""
    return f", mixed {' to '.join(f'{weight:g}' for weight in weights)}"


def _license(name: str) -> str:
    return _code(name) if name else "None was stated when the model was exported."


def _table(title: str, rows: list[tuple[str, str]]) -> str:
    return "\n".join(
        [f"| {title} | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]
    )


def _code(text: str) -> str:
    """Return a user's text as inline code of Markdown, which nothing in it can end."""
    return f"`{printable_line(text).replace('`', chr(39))}`"
