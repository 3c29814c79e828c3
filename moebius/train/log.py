"""A logged step: figures leave the device, become one line of metrics.jsonl and one look at the terminal."""

import math
import resource
import time
from pathlib import Path
from typing import Any

import torch

from moebius.config import Config
from moebius.cost import training_flops_per_token
from moebius.errors import NumericError
from moebius.observe.balance import dead_experts, variation
from moebius.observe.ceiling import matmul_ceiling
from moebius.observe.metrics import MetricsFile
from moebius.observe.terminal import Terminal
from moebius.train.evaluate import Evaluation
from moebius.train.state import TrainState
from moebius.train.step import StepResult, matmul_dtype


class StepLog:
    """Writes what a step measured. Speed is that of the steps since the last line, without the time between `pause` and
    the next step's begin: evaluations and checkpoints do not slow the figure."""

    def __init__(self, config: Config, metrics_path: Path, state: TrainState, terminal: Terminal, device: torch.device):
        self.config, self.state, self.terminal, self.device = config, state, terminal, device
        self.file = MetricsFile(metrics_path, resume_step=state.step)
        self.ceiling = matmul_ceiling(device, matmul_dtype(config.train, device))
        self.seconds = 0.0
        self.tokens = state.tokens
        self.started: float | None = time.perf_counter()

    def __enter__(self) -> "StepLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def pause(self) -> None:
        """Stop the clock, once the device has done what it was given."""
        if self.started is not None:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self.seconds += time.perf_counter() - self.started
            self.started = None

    def go_on(self) -> None:
        """Start the clock again."""
        if self.started is None:
            self.started = time.perf_counter()

    def write(self, result: StepResult, evaluation: Evaluation | None = None) -> None:
        """Raises NumericError if the step's loss or gradient is not finite."""
        self.check_finite(result)
        self.pause()
        speed = (self.state.tokens - self.tokens) / max(self.seconds, 1e-9)
        self.seconds, self.tokens = 0.0, self.state.tokens
        metrics = step_metrics(self.config, self.state, result) | {
            "tokens_per_second": speed,
            "mfu": speed * self._flops_per_token(result) / self.ceiling,
            "memory_gb": self._memory() / 1e9,
        }
        if evaluation is not None:
            metrics |= {"val_loss": evaluation.loss, "val_bpb": evaluation.bits_per_byte}
        self.file.write(metrics)
        self.terminal.metrics(metrics)

    def check_finite(self, result: StepResult) -> None:
        """Raises NumericError; waits for the device."""
        loss, norm = result.loss.item(), result.grad_norm.item()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise NumericError(
                f"step {self.state.step}: loss {loss}, gradient norm {norm}; the last checkpoint is unharmed. "
                "Lower --train.lr, or lengthen --train.warmup_steps"
            )

    def _flops_per_token(self, result: StepResult) -> float:
        model, train = self.config.model, self.config.train
        tokens = train.batch_size * train.seq_len
        rows = [sum(counts) / tokens for counts in by_layer(self.config, result.tokens_per_expert)]
        return training_flops_per_token(model, train.seq_len, rows)

    def _memory(self) -> float:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def step_metrics(config: Config, state: TrainState, result: StepResult) -> dict[str, Any]:
    """The figures that follow from the step alone."""
    counts = by_layer(config, result.tokens_per_expert)
    metrics: dict[str, Any] = {
        "step": state.step,
        "tokens": state.tokens,
        "loss": result.loss.item(),
        "lr": result.lr,
        "grad_norm": result.grad_norm.item(),
        "balance_loss": 0.0 if result.balance_loss is None else result.balance_loss.item(),
        "cv": [variation(layer) for layer in counts],
        "dead_experts": [dead_experts(layer) for layer in counts],
        "tokens_per_expert": counts,
    }
    if result.z_loss is not None:
        metrics["z_loss"] = result.z_loss.item()
    if result.mtp_loss is not None:
        metrics["mtp_loss"] = result.mtp_loss.item()
    return metrics


def by_layer(config: Config, tokens_per_expert: list[torch.Tensor]) -> list[list[int]]:
    """One list of counts per layer, empty for a dense one; the MTP layer's comes last, over its three passes."""
    counted = iter(tokens_per_expert)
    experts = list(config.model.experts_per_layer)
    if config.model.use_mtp:
        experts.append(experts[-1])
    return [next(counted).tolist() if count else [] for count in experts]
