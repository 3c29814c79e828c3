"""Export a run's model to a folder that stock transformers loads without custom code.

What was written is loaded again and compared with the run's model before the folder gets its name,
so that an export is exact or does not exist.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from moebius.config import Config, ModelConfig
from moebius.cost.exports import TARGETS, holder
from moebius.cost.units import byte_size
from moebius.data import Tokenizer, reopen
from moebius.errors import CheckpointError, ConfigError, MoebiusError, NumericError
from moebius.infer.model_card import Origin, Verified, card, read_metrics
from moebius.infer.stock_check import (
    Difference,
    check,
    compare,
    logits_of,
    random_tokens,
    stock_model,
)
from moebius.infer.stock_config import TextSettings, config_json, generation_json
from moebius.infer.stock_files import (
    CONFIG,
    GENERATION,
    StockTensors,
    new_folder,
    write_json,
    write_tensors,
)
from moebius.infer.stock_reading import own_tensors
from moebius.infer.stock_shape import StockShape
from moebius.infer.stock_tensors import parts
from moebius.infer.stock_tokenizer import write_tokenizer
from moebius.infer.trained import Trained, trained
from moebius.model.transformer import Transformer
from moebius.train.resumption import own_tokenizer
from moebius.train.run_directory import RunDirectory
from moebius.train.state import load_model

PRECISION = {"float32": 1e-6, "bfloat16": 2.0**-8}
"""Largest change of a weight, relative to the largest of its tensor, by rounding to a dtype."""
CARD = "README.md"
REAL_TOKENS = 2048
"""Largest length of the text that the models are compared on."""
KEPT_FLOAT32 = "e_score_correction_bias"
"""End of the names of tensors that are float32 in every stock checkpoint."""

Report = Callable[[str], None]


class ExportOptions(NamedTuple):
    """What to export of a run, and how."""

    step: int | None = None
    """Step of the checkpoint; None for the newest one."""
    average: int = 1
    """Number of checkpoints, up to that one, whose mean is exported."""
    dtype: str = "float32"
    """Numbers of the weights, one of `DTYPES`."""
    drop_mtp: bool = False
    """Leave the layer for multi-token prediction out."""
    license: str = ""
    """Name of the license for the model card."""


def export(
    run: RunDirectory,
    target: str,
    place: Path,
    options: ExportOptions,
    report: Report = print,
    complain: Report = print,
) -> None:
    """Write the run's model into the new folder `place`.

    `report` gets lines about what was done, and `complain` about what was passed over. Raises
    ConfigError for a target or a model that cannot be exported, StorageError for a folder that
    exists or cannot be written, CheckpointError for a run without the checkpoint, and NumericError
    if the exported model does not compute the same; nothing is left behind then.
    """
    _check_target(target)
    config = run.config()
    model = _without_mtp(config.model, options)
    if reason := holder(model).reason:
        raise ConfigError(f"{run.root}: cannot be exported to {target}: {reason}")
    record = run.record(complain)
    tokenizer = own_tokenizer(config, run, record)
    with new_folder(place) as folder:
        weights = trained(run, config, record, options.step, options.average, complain)
        context = config.train.longest_seq_len(weights.tokens)
        text = TextSettings(tokenizer.size, tokenizer.end_of_text, context)
        own = {name: t for name, t in weights.tensors.items() if not name.startswith("mtp.")}
        shape = _shape(run, model, own)
        report(f"architecture   {shape.architecture.name}, from {_source(weights)}")
        size = write_stock(folder, shape, own, text, options.dtype)
        write_tokenizer(folder, tokenizer, text.seq_len)
        report(f"weights        {byte_size(size, decimals=3)}, {options.dtype}")
        sample = _sample(run, config, tokenizer, context)
        verified = _verify(folder, shape, own, text, options.dtype, sample)
        report(f"verified       transformers {verified.version}, in float32; largest difference")
        report(f"               of logits: {verified.random} (random)")
        report(f"               and {verified.real} ({verified.text})")
        origin = Origin(
            run.root.resolve().name,
            config,
            weights.steps,
            read_metrics(run.metrics_path, weights.steps[0]),
            context,
            record.origin if record else None,
        )
        readme = card(origin, shape, verified, options.dtype, options.license)
        (folder / CARD).write_text(readme, "utf-8")
    report(f"exported to    {place}")


def _check_target(target: str) -> None:
    if target not in TARGETS:
        raise ConfigError(f"--to {target}: must be one of {', '.join(TARGETS)}")
    try:
        import transformers  # noqa: F401
    except ImportError:
        raise ConfigError(
            "an export is verified with the library transformers, which is not installed; "
            "`pip install 'moebius[transformers]'`"
        ) from None


def _without_mtp(model: ModelConfig, options: ExportOptions) -> ModelConfig:
    """Return the model without its MTP layer. Raises ConfigError if it is not to be left out."""
    if model.use_mtp and not options.drop_mtp:
        raise ConfigError(
            "model.use_mtp=true: no stock architecture has this layer for multi-token prediction; "
            "--drop mtp leaves it out"
        )
    return replace(model, use_mtp=False)


def _shape(run: RunDirectory, model: ModelConfig, own: dict[str, Tensor]) -> StockShape:
    """Return the shape of the model as it was trained.

    Raises ConfigError if a choice bias, which an alarm may have left, fits nowhere.
    """
    has_bias = any(name.endswith("bias_E") and bool(t.any()) for name, t in own.items())
    found = holder(model, has_bias)
    if found.architecture is None:
        raise ConfigError(f"{run.root}: cannot be exported: {found.reason}")
    return StockShape(model, found.architecture)


def _source(weights: Trained) -> str:
    if len(weights.steps) == 1:
        return f"step {weights.steps[0]:,}"
    return f"the mean of steps {', '.join(map(str, weights.steps))}"


def write_stock(
    folder: Path,
    shape: StockShape,
    own: dict[str, Tensor],
    text: TextSettings,
    dtype: str = "float32",
) -> int:
    """Write weights and settings into a folder, and return the size of the weights in bytes."""

    def stock() -> Iterator[tuple[str, Tensor]]:
        nothing = torch.empty(0)
        for part in parts(shape, text.vocab_size):
            tensors = part.to_stock(own[part.own] if part.own else nothing)
            for name, tensor in zip(part.stock, tensors, strict=True):
                is_wide = name.endswith(KEPT_FLOAT32)
                yield name, tensor if is_wide else tensor.to(getattr(torch, dtype))

    write_json(folder / CONFIG, config_json(shape, text, dtype))
    write_json(folder / GENERATION, generation_json(text))
    return write_tensors(folder, stock())


def _verify(
    folder: Path,
    shape: StockShape,
    own: dict[str, Tensor],
    text: TextSettings,
    dtype: str,
    sample: tuple[str, Tensor],
) -> Verified:
    """Compare what was written with the run's weights, and both models' logits.

    Our model gets the weights back from the files, so that rounding to `dtype` is in both models;
    that these weights are the run's is checked first. Raises NumericError.
    """
    import transformers

    model = replace(shape.model, vocab_size=text.vocab_size)
    try:
        written = own_tensors(StockTensors(folder), shape, text.vocab_size)
    except CheckpointError as error:
        raise NumericError(f"what was written cannot be read back: {error}") from None
    for name, tensor in written.items():
        trained_tensor = own[name][: len(tensor)]  # unused rows of the vocabulary are left out
        change = (tensor - trained_tensor).abs().max()
        if not change <= PRECISION[dtype] * trained_tensor.abs().max():
            raise NumericError(f"{name}: differs by {change:.2g} when it is read back")
    ours = Transformer(model).eval()
    load_model(ours, written)
    theirs = logits_of(stock_model(folder))
    tokens_BS = random_tokens(text.vocab_size, text.seq_len)
    random = _checked(ours, theirs, tokens_BS, "random tokens")
    name, tokens_BS = sample
    return Verified(
        random, _checked(ours, theirs, tokens_BS, name), name, transformers.__version__
    )


def _checked(ours: Transformer, theirs: Callable, tokens_BS: Tensor, what: str) -> Difference:
    difference = compare(ours, theirs, tokens_BS)
    check(difference, what)
    return difference


def _sample(
    run: RunDirectory, config: Config, tokenizer: Tokenizer, context: int
) -> tuple[str, Tensor]:
    """Return what the sample of text is, and its tokens: held-out text if it is in the cache.

    Otherwise it is this file, which any tokenizer can tokenize.
    """
    length = min(context, REAL_TOKENS)
    record = run.record(lambda line: None)
    try:
        if record is None:
            raise CheckpointError("the run has no record of its text")
        val = reopen(config.data, record.folders, tokenizer).val
        name, ids = "held-out text", val.read(0, min(length, len(val))).tolist()
    except MoebiusError:
        text = Path(__file__).read_text("utf-8")
        name, ids = "a sample of text", [tokenizer.end_of_text, *tokenizer.encode(text)][:length]
    return name, torch.tensor([ids])
