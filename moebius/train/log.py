"""A logged step: figures leave the device, become one line of metrics.jsonl and one look at the terminal."""

import resource
import time
from typing import Any

import torch

from moebius.config import Config
from moebius.cost import training_flops_per_token
from moebius.errors import NumericError
from moebius.model.statistics import LayerStats, flat, unflat
from moebius.observe.alarms import Alarm
from moebius.observe.balance import NOTHING, layer_figures
from moebius.observe.ceiling import matmul_ceiling
from moebius.observe.json_lines import JsonLines
from moebius.observe.tensorboard import TensorBoard
from moebius.observe.terminal import Terminal
from moebius.train.checkpoint_writer import CheckpointWriter
from moebius.train.evaluate import Evaluation
from moebius.train.run_directory import RunDirectory
from moebius.train.state import TrainState, is_finite
from moebius.train.step import StepResult, matmul_dtype


class StepLog:
    """Writes what a step measured. Speed is that of the steps since the last line, without the time between `pause` and
    the next step's begin: evaluations and checkpoints do not slow the figure."""

    def __init__(self, config: Config, run: RunDirectory, state: TrainState, terminal: Terminal, device: torch.device):
        self.config, self.run, self.state, self.terminal, self.device = config, run, state, terminal, device
        self.unsettled: list[tuple[int, int, torch.Tensor]] = []  # step, batch, whether it was skipped
        self.metrics = JsonLines(run.metrics_path, resume_step=state.step)
        self.events = JsonLines(run.events_path, resume_step=state.step)
        self.tensorboard = TensorBoard(run.tensorboard_path, state.step) if config.observe.tensorboard else None
        self.ceiling = matmul_ceiling(device, matmul_dtype(config.train, device))
        self.seconds = 0.0
        self.tokens = state.tokens
        self.started: float | None = time.perf_counter()

    def __enter__(self) -> "StepLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.metrics.close()
        self.events.close()
        if self.tensorboard is not None:
            self.tensorboard.close()

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

    def write(self, result: StepResult, evaluation: Evaluation | None = None) -> dict[str, Any]:
        """One line of metrics, everywhere; returned as it is written. Raises NumericError as `settle` does."""
        self.pause()
        self.settle()
        speed = (self.state.tokens - self.tokens) / max(self.seconds, 1e-9)
        self.seconds, self.tokens = 0.0, self.state.tokens
        metrics = step_metrics(self.config, self.state, result)
        metrics |= {
            "tokens_per_second": speed,
            "mfu": speed * self._flops_per_token(metrics) / self.ceiling,
            "memory_gb": self._memory() / 1e9,
        }
        if evaluation is not None:
            metrics |= {"val_loss": evaluation.loss, "val_bpb": evaluation.bits_per_byte}
        self.metrics.write(metrics)
        if self.tensorboard is not None:
            self.tensorboard.write(metrics, time.time())
        self.terminal.metrics(metrics)
        return metrics

    def event(self, alarm: Alarm, done: str) -> None:
        """One line on the terminal and one in events.jsonl, for a rule that fired and what was done about it."""
        self.events.write(alarm.event(done))
        self.terminal.say(f"{alarm}; {done}" if done else str(alarm))

    def note(self, result: StepResult) -> None:
        """Remember, on the device, whether the step was skipped."""
        self.unsettled.append((self.state.step, self.state.batch - 1, result.is_skipped))

    def settle(self) -> None:
        """Report the skipped steps since the last time. Waits for the device.

        Raises NumericError once more than train.max_skipped were skipped in a row.
        """
        if not self.unsettled:
            return
        flags = torch.stack([flag for _, _, flag in self.unsettled]).tolist()
        for (step, batch, _), is_skipped in zip(self.unsettled, flags, strict=True):
            self.state.skipped = self.state.skipped + 1 if is_skipped else 0
            if is_skipped:
                self._skipped(step, batch)
        self.unsettled.clear()
        if self.state.skipped > self.config.train.max_skipped:
            raise NumericError(
                f"step {self.state.step}: loss or gradient not finite {self.state.skipped} times in a row; the last checkpoint "
                "is unharmed. Lower --train.lr, or lengthen --train.warmup_steps"
            )

    def save(self, writer: CheckpointWriter) -> None:
        """Save the state, with the clock stopped. Weights that are not finite are never saved."""
        self.pause()
        self.settle()
        if not self.state.skipped or is_finite(self.state.model):
            writer.save(self.state)

    def rewind(self) -> None:
        """After a roll-back: the metrics of steps that will be run again are dropped."""
        self.metrics.close()
        self.metrics = JsonLines(self.run.metrics_path, resume_step=self.state.step)
        self.tokens = self.state.tokens
        self.unsettled.clear()

    def _skipped(self, step: int, batch: int) -> None:
        size = self.config.train.batch_size
        first, last = batch * size, (batch + 1) * size - 1
        self.events.write(
            {"event": "skipped", "step": step, "batch": batch, "sequences": [first, last], "in_a_row": self.state.skipped}
        )
        self.terminal.say(
            f"step {step}: loss or gradient not finite; the update was skipped (batch {batch}, sequences {first:,} to {last:,})"
        )

    def _flops_per_token(self, metrics: dict[str, Any]) -> float:
        model, train = self.config.model, self.config.train
        tokens = train.batch_size * train.seq_len
        rows = [sum(counts) / tokens for counts in metrics["tokens_per_expert"]]
        return training_flops_per_token(model, train.seq_len, rows)

    def _memory(self) -> float:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def step_metrics(config: Config, state: TrainState, result: StepResult) -> dict[str, Any]:
    """The figures that follow from the step alone. Lists are per layer, the MTP layer's last."""
    balance, z, router_norm = (_listed(v) for v in (result.balance_loss_M, result.z_loss_M, result.router_grad_norm_M))
    metrics: dict[str, Any] = {
        "step": state.step,
        "tokens": state.tokens,
        "loss": result.loss.item(),
        "lr": result.lr,
        "grad_norm": result.grad_norm.item(),
        "balance_loss": sum(balance) / max(1, len(balance)),
        "z_loss": sum(z) / max(1, len(z)),
    }
    if result.mtp_loss is not None:
        metrics["mtp_loss"] = result.mtp_loss.item()
    layers = [layer_figures(layer) for layer in on_the_cpu(result.stats)]
    metrics |= {name: by_layer(config, [layer[name] for layer in layers], nothing) for name, nothing in NOTHING.items()}
    return metrics | {
        "router_grad_norm": by_layer(config, router_norm, None),
        "layer_balance_loss": by_layer(config, balance, None),
        "layer_z_loss": by_layer(config, z, None),
    }


def on_the_cpu(stats: list[LayerStats]) -> list[LayerStats]:
    """In one transfer."""
    return unflat(flat(stats).cpu(), stats) if stats else []


def by_layer(config: Config, values: list[Any], nothing: Any) -> list[Any]:
    """One value per layer, `nothing` for one without experts; the MTP layer's comes last, over its three passes."""
    present = iter(values)
    experts = list(config.model.experts_per_layer)
    if config.model.use_mtp:
        experts.append(experts[-1])
    return [next(present) if count else nothing for count in experts]


def _listed(value: torch.Tensor | None) -> list[float]:
    return [] if value is None else value.tolist()
