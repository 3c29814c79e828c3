"""From a configuration to a session that is ready to train, new or resumed."""

from collections.abc import Callable

import torch

from moebius.config import Config
from moebius.data import Batches, Corpus, check_evaluable, prepare
from moebius.errors import ConfigError
from moebius.model.backends import Backends, choose_backends
from moebius.model.transformer import lookahead, seeded
from moebius.parallel.layout import lay_out
from moebius.train.checkpoint import complete, latest, tidy
from moebius.train.common_start import tie_experts
from moebius.train.loop import Session
from moebius.train.run_directory import RunDirectory
from moebius.train.state import TrainState
from moebius.train.step import matmul_dtype
from moebius.train.summary import summary

Say = Callable[[str], None]


def start(config: Config, source: str, say: Say, progress: bool = False) -> Session:
    """A new run. Its directory is made last, so that a run that cannot begin leaves none."""
    device = choose_device(config.train.device)
    run = RunDirectory.plan(config, source)
    corpus = prepare(config.data, config.model.vocab_size, report=say, progress=progress)
    batches = cut(config, corpus)
    run.create(config, corpus.tokenizer)
    state = build(config, corpus, device, say)
    return Session(config, run, corpus, batches, state, device)


def resume(config: Config, run: RunDirectory, say: Say, progress: bool = False) -> Session:
    """A run that goes on from its newest intact checkpoint, or from its start if it was stopped before the first."""
    device = choose_device(config.train.device)
    tidy(run.checkpoints)
    folder = latest(run.checkpoints, say) if complete(run.checkpoints) else None
    corpus = prepare(config.data, config.model.vocab_size, report=say, progress=progress)
    if corpus.tokenizer.to_json() != run.tokenizer().to_json():
        raise ConfigError(
            f"{run.root}: data.source={config.data.source!r} gives another tokenizer than the run's: its text has changed"
        )
    state = build(config, corpus, device, say)
    if folder is not None:
        state.load(folder)
    say(f"resuming {run.root} at step {state.step:,} of {config.train.steps:,}")
    return Session(config, run, corpus, cut(config, corpus), state, device)


def cut(config: Config, corpus: Corpus) -> Batches:
    """The training text as batches. Raises DataError if it is too short for one, or the held-out text to be evaluated."""
    train = config.train
    check_evaluable(corpus.val, lookahead(config.model))
    return Batches(corpus.train, train.seq_len, train.batch_size, train.seed, lookahead(config.model))


def build(config: Config, corpus: Corpus, device: torch.device, say: Say) -> TrainState:
    """The seeded model, laid out on the device, with its optimizers; says what was chosen."""
    backends = backends_for(config, device)
    model = seeded(config.train.seed, config.model, backends).to(device)
    choices = [*backends.reasons, *lay_out(model, config.parallel, device)]
    for line in summary(config, corpus, device, choices, backends.has_own_kernels):
        say(line)
    if config.train.common_start:
        tie_experts(model)
    return TrainState.new(model, config, corpus.identity)


def backends_for(config: Config, device: torch.device) -> Backends:
    """What runs a configuration's model on the device."""
    dtype, masking = matmul_dtype(config.train, device), config.data.document_masking
    return choose_backends(config.parallel, device, dtype, masking, config.model.dim, config.train.expert_dtype)


def choose_device(name: str) -> torch.device:
    """auto is the first GPU, or the CPU. Raises ConfigError for a GPU that is not there."""
    available = torch.cuda.device_count()
    if name == "auto":
        return torch.device("cuda" if available else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= available:
        raise ConfigError(f"train.device={name!r}: this machine has {available} CUDA devices; use --train.device cpu or auto")
    return device
