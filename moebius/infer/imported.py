"""Make a run of the model in a stock checkpoint or in an export, to go on training with it."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from moebius.config import Config, ModelConfig
from moebius.config.files import override
from moebius.config.flags import Values
from moebius.data import prepare
from moebius.errors import CheckpointError, ConfigError, DataError
from moebius.hardware.device import choose_device
from moebius.infer.stock_check import check, compare, logits_of, random_tokens, stock_model
from moebius.infer.stock_files import StockTensors
from moebius.infer.stock_model import StockModel, stock_model_of
from moebius.infer.stock_reading import own_tensors
from moebius.infer.stock_tokenizer import FILE
from moebius.infer.upcycle import Upcycling, upcycled, upcycled_config
from moebius.model.transformer import Transformer
from moebius.train import checkpoint
from moebius.train.origin import Begun, Origin
from moebius.train.run_directory import RunDirectory
from moebius.train.run_record import RunRecord
from moebius.train.session import build
from moebius.train.state import check_model, load_model

FIRST = "step-00000000"

Report = Callable[[str], None]


def import_stock(
    folder: Path, base: Config, values: Values, upcycling: Upcycling | None, report: Report
) -> RunDirectory:
    """Return a new run of the model in `folder`, with a checkpoint of step 0.

    base: the configuration whose settings the run gets, except for those of the model.
    values: settings that replace those.
    upcycling: how the dense model becomes a mixture of experts; None leaves it as it is.

    The run's text is prepared with the tokenizer of the checkpoint, unless `values` names another.
    `report` gets lines about the model and the run. Raises CheckpointError for a checkpoint that
    is damaged, or that our model cannot be; ConfigError, DataError and StorageError as a new run
    does. Nothing is left behind then.
    """
    stock = stock_model_of(folder)
    model = stock.shape.model
    own = stock_weights(folder, stock)
    with torch.device("meta"):
        check_model(Transformer(model), own, folder)
    _check_logits(folder, model, stock.seq_len, own, report)
    if upcycling:
        mixture = upcycled_config(model, upcycling)
        own, model = upcycled(own, mixture, upcycling, base.train.seed), mixture
    config = _config(folder, base, values, model, stock.seq_len)
    run = RunDirectory.plan(config, folder.resolve().name)
    run.check_writable()
    device = choose_device(config.train.device)
    corpus = prepare(config.data, config.model.vocab_size, report=report)
    state = build(config, corpus, device, report)
    check_model(state.model, own, folder)
    load_model(state.model, own)
    how = ",".join(f"{name}={n}" for name, n in upcycling._asdict().items()) if upcycling else ""
    origin = Origin("imported", str(folder.resolve()), upcycled=how)

    def fill(aside: RunDirectory) -> None:
        # A run without this checkpoint would begin with new weights.
        checkpoint.save(aside.checkpoints / FIRST, *state.captured())
        aside.write_first_event(Begun(origin))

    record = RunRecord.of(config, corpus, origin=origin)
    return RunDirectory(run.create(record, corpus.tokenizer, report, fill).folder)


def stock_weights(folder: Path, stock: StockModel) -> dict[str, Tensor]:
    """Return our weights by name. Raises CheckpointError, which names the folder or a file."""
    try:
        tensors = StockTensors(folder)
        return own_tensors(tensors, stock.shape, stock.shape.model.vocab_size, stock.prepare)
    except CheckpointError as error:
        text = str(error)
        raise CheckpointError(text if str(folder) in text else f"{folder}: {text}") from None


def _check_logits(
    folder: Path, model: ModelConfig, seq_len: int, own: dict[str, Tensor], report: Report
) -> None:
    """Compare the logits with those of transformers, if it is installed. Raises NumericError."""
    with suppress(ImportError):
        theirs = logits_of(stock_model(folder))
        ours = Transformer(model).eval()
        load_model(ours, own)
        difference = compare(ours, theirs, random_tokens(model.vocab_size, seq_len))
        check(difference, "random tokens", "imported")
        report(f"verified         largest difference of logits, in float32: {difference}")


def _config(
    folder: Path, base: Config, values: Values, model: ModelConfig, seq_len: int
) -> Config:
    """Return the run's configuration."""
    data, train = base.data, base.train
    if "tokenizer" not in values.get("data", {}):
        tokenizer = folder.resolve() / FILE
        if not tokenizer.is_file():
            raise DataError(
                f"{folder}: no {FILE} in it; name the model's tokenizer with --data.tokenizer"
            )
        data = replace(data, tokenizer=str(tokenizer), vocab_size=0)
    if "seq_len" not in values.get("train", {}):
        train = replace(train, seq_len=min(seq_len, train.seq_len))
    if train.common_start:
        raise ConfigError("train.common_start: must be 0, because the experts are trained already")
    return override(replace(base, model=model, data=data, train=train), values)
