"""The `train` section: the settings of the training itself."""

import re
from dataclasses import dataclass, fields
from typing import Annotated, Literal

from moebius.config.fields import (
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    between,
    check_fields,
    divisors,
)
from moebius.config.phases import REPLACED, Phase, check_phases, phases_of
from moebius.config.suggestions import nearest, value_suggestion
from moebius.errors import ConfigError

RUN_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
DEVICES = ("auto", "cpu", "cuda")
MOST_THREADS = 4096
"""Largest number of CPU threads, more than any machine has cores."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long to train, with which optimizer, and where the run is stored."""

    steps: PositiveInt = 10_000
    """Number of optimizer steps."""
    batch_size: PositiveInt = 16
    """Sequences per step, over all devices."""
    micro_batch_size: NonNegativeInt = 0
    """Sequences per forward pass. A step accumulates the gradients of
    batch_size / micro_batch_size passes. 0 means batch_size."""
    seq_len: PositiveInt = 2048
    """Tokens per sequence (S)."""
    seed: NonNegativeInt = 0
    """Seed of the initial weights and of the order of the data."""

    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon uses Muon for the hidden matrices, for each expert's separately, and AdamW for
    everything else."""
    lr: PositiveFloat = 6e-4
    """Peak learning rate. Muon's updates are scaled to the size of AdamW's, so the same rate
    serves both."""
    weight_decay: NonNegativeFloat = 0.1
    """Decoupled weight decay of the matrices. The embedding, norms and biases are not decayed."""
    beta1: Annotated[float, between(0, 0.99999)] = 0.9
    """AdamW's decay of the first moment."""
    beta2: Annotated[float, between(0, 0.99999)] = 0.95
    """AdamW's decay of the second moment."""
    grad_clip: NonNegativeFloat = 1.0
    """Largest global norm of the gradient. 0 means no clipping."""
    schedule: Literal["cosine", "wsd"] = "cosine"
    """Learning rate after the linear warm-up: cosine decays over the whole run, wsd stays at the
    peak and decays linearly at the end."""
    warmup_steps: NonNegativeInt = 100
    """Number of steps over which the learning rate rises linearly."""
    decay_fraction: Fraction = 0.2
    """Last part of the run in which the wsd schedule decays, as a share of the steps."""
    min_lr_fraction: Fraction = 0.1
    """Learning rate at the end of the run, as a share of lr."""
    phases: tuple[Phase, ...] = ()
    """Parts of the run, by tokens, each with its own learning-rate schedule, batch size, sequence
    length and mixture. Only a TOML file can name them. They replace steps, schedule, warmup_steps,
    decay_fraction and min_lr_fraction."""
    common_start: Fraction = 0.0
    """First part of the run in which all experts of a layer are equal and share their gradients,
    as a share of the steps. It helps top-1 experts without a base MLP and cannot help more
    experts per token."""

    eval_every: NonNegativeInt = 500
    """Steps between evaluations. 0 means only at the end."""
    eval_tokens: PositiveInt = 1_000_000
    """Largest number of held-out tokens that an evaluation reads."""
    checkpoint_every: NonNegativeInt = 1000
    """Steps between checkpoints. 0 means only at the end."""
    keep_last: NonNegativeInt = 3
    """Number of newest checkpoints that are kept. 0 means all."""
    keep_every: NonNegativeInt = 0
    """Also keep every checkpoint whose step is a multiple of this. 0 means none."""
    max_skipped: NonNegativeInt = 10
    """Updates in a row that may be skipped because the loss or the gradient is not finite. One
    more ends the run."""
    max_rollbacks: NonNegativeInt = 3
    """How often a loss_spike alarm may roll the run back."""
    log_every: PositiveInt = 10
    """Steps between lines in metrics.jsonl. In between, nothing waits for the device."""
    out: str = "runs"
    """Folder in which runs are stored."""
    name: str = ""
    """Name of the run, which is its folder inside of out. If empty: the preset's or file's name,
    date and time."""
    device: str = "auto"
    """Device to train on: auto, cpu, cuda or cuda:N. auto takes a GPU if there is one."""
    threads: Annotated[int, between(0, MOST_THREADS)] = 0
    """Number of CPU threads. 0 means OMP_NUM_THREADS if that is set, and otherwise one per core,
    but no more than a container's share of the processor."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Arithmetic of matrix products (autocast); weights are always float32. auto: bfloat16 on a
    GPU, float32 elsewhere."""
    expert_dtype: Literal["auto", "float8"] = "auto"
    """Arithmetic of the experts' matrix products. auto: as dtype. float8: e4m3 with weight
    gradients in bfloat16, native on a Hopper GPU and emulated elsewhere."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "phases", phases_of(self.phases))
        check_fields("train", self)
        if self.phases:
            check_phases(self.phases, self.batch_size)
            for field in fields(self):
                if field.name in REPLACED:
                    object.__setattr__(self, field.name, field.default)
            object.__setattr__(self, "steps", self.last_step(0, 0))
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ConfigError(
                f"train.micro_batch_size={self.micro_batch_size}: must divide batch_size "
                f"({self.batch_size}); one of {divisors(self.batch_size)}"
            )
        if self.name and (not RUN_NAME.fullmatch(self.name) or set(self.name) == {"."}):
            raise ConfigError(
                f"train.name={self.name!r}: must be 1 to 64 letters, digits, '.', '_' or '-', "
                "because it names a folder inside train.out"
            )
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            suggested = value_suggestion("train.device", self.device)
            hint = f"; did you mean {suggested}?" if suggested else nearest(self.device, DEVICES)
            raise ConfigError(
                f"train.device={self.device!r}: must be auto, cpu, cuda or cuda:N{hint}"
            )

    def phase_at(self, tokens: int) -> int:
        """Return the number, from 0, of the phase of a step that begins after that many tokens.

        It is 0 in a run without phases, and that of the last phase after its end.
        """
        ends = (number for number, phase in enumerate(self.phases) if phase.until > tokens)
        return next(ends, max(0, len(self.phases) - 1))

    def tokens_per_step(self, number: int) -> int:
        """Return the tokens of a step in a phase, counted from 0; of any step without phases."""
        phase = self.phases[number] if self.phases else None
        batch_size = (phase and phase.batch_size) or self.batch_size
        return batch_size * ((phase and phase.seq_len) or self.seq_len)

    def is_over(self, step: int, tokens: int) -> bool:
        """Return whether a run that is at this step, after that many tokens, is at its end."""
        return tokens >= self.phases[-1].until if self.phases else step >= self.steps

    def last_step(self, step: int, tokens: int) -> int:
        """Return the last step of a run that is at this step, after that many tokens."""
        return self.phase_ends(step, tokens)[-1][0] if self.phases else self.steps

    def phase_ends(self, step: int, tokens: int) -> list[tuple[int, int]]:
        """Return the step and the tokens that each phase ends with.

        The run is at `step`, after `tokens` tokens. A phase that it has behind it ends there, too.
        """
        ends: list[tuple[int, int]] = []
        for number, phase in enumerate(self.phases):
            per_step = self.tokens_per_step(number)
            num_steps = max(0, -(-(phase.until - tokens) // per_step))
            step, tokens = step + num_steps, tokens + num_steps * per_step
            ends.append((step, tokens))
        return ends

    def longest_seq_len(self, tokens: int) -> int:
        """Return the tokens in the longest sequences of the first `tokens` tokens of the run."""
        begun = self.phases[: self.phase_at(max(0, tokens - 1)) + 1]
        return max((phase.seq_len or self.seq_len for phase in begun), default=self.seq_len)

    @property
    def accumulation_steps(self) -> int:
        """Number of forward and backward passes per optimizer step."""
        return self.batch_size // (self.micro_batch_size or self.batch_size)
